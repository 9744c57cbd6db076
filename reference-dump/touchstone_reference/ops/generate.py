"""Cases of `generate`: greedy generation by a committed model, past the end of its context.

As nanoGPT does it: each step feeds the last P tokens (all, while they are fewer) from position 0 and without a
cache, and appends the most likely token.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ..model import Gpt
from ..recipe import new_case
from ..trained import SMALL_MODEL, TEXT, load_trained, prompt_tokens, trained_config
from ..writer import CaseWriter

NEW_TOKENS = 256
# name: prompts; together with the new tokens all of them run past the context of 256.
PROMPTS = {
    "one_character": ["T"],
    "three_speakers": ["First Citizen:\n", "KING RICHARD I:", "My lord, I will"],
    "newline": ["\n\n"],
    "unequal": ["First Citizen:\n", "T", TEXT[:47]],
}


def cases() -> Iterator[CaseWriter]:
    for name, prompts in PROMPTS.items():
        lengths = [len(prompt) for prompt in prompts]  # a character is a token
        config = trained_config(SMALL_MODEL) | {"max_new_tokens": NEW_TOKENS}
        if len(set(lengths)) > 1:
            config |= {"lengths": lengths}
        writer, _ = new_case("generate", name, "f32", config)
        single, double = (load_trained(SMALL_MODEL, dtype) for dtype in (torch.float32, torch.float64))
        padded, generated, margins = [], [], []
        # Neighbours of one length together, others apart: a row must not depend on what another is padded with.
        for length, group in itertools.groupby(prompts, key=len):
            tokens = prompt_tokens(SMALL_MODEL, list(group))
            path = generate_greedily(single, tokens)
            padded.append(torch.nn.functional.pad(tokens, (0, max(lengths) - length)))
            generated.append(path[:, length:])
            margins.append(margins_along(double, path, length))
        writer.input("tokens", torch.cat(padded))
        writer.output("generated", torch.cat(generated), rule="greedy", margins="margins")
        writer.margin("margins", torch.cat(margins))
        yield writer


def generate_greedily(model: Gpt, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts [B, T] → the prompts with the new tokens behind them [B, T + N]."""
    context = model.config.max_position_embeddings
    tokens = prompts
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            chosen = model(tokens[:, -context:])[:, -1].argmax(dim=-1, keepdim=True)
            tokens = torch.cat([tokens, chosen], dim=1)
    return tokens


def margins_along(double: Gpt, tokens: Tensor, start: int) -> Tensor:
    """How far the best float64 logit leads the second at each step of the path `tokens` [B, start + N] → [B, N] float64.

    The path is the float32 model's; the float64 model only says how close each decision on it was.
    """
    context = double.config.max_position_embeddings
    with torch.no_grad():
        # While the window grows, one pass sees what every step saw, because attention is causal.
        logits = [double(tokens[:, :context])[:, start - 1 : tokens.shape[1] - 1]]
        for end in range(context + 1, tokens.shape[1]):
            logits.append(double(tokens[:, end - context : end])[:, -1:])
    best = torch.cat(logits, dim=1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]
