"""Cases of `generate`: generation by a committed model, past the end of its context.

As nanoGPT does it: each step feeds the last P tokens (all, while they are fewer) from position 0 and without a
cache, and appends the token that wins: the most likely one, or where a case has a rule of sampling, the one that
`sample` picks at that step.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..model import Gpt
from ..recipe import new_case
from ..trained import SMALL_MODEL, load_trained, prompt_tokens, trained_config
from ..writer import CaseWriter
from .sample import Settings, draw_seed, race

NEW_TOKENS = 256
# name: prompts; together with the new tokens all of them run past the context of 256.
PROMPTS = {
    "one_character": ["T"],
    "three_speakers": ["First Citizen:\n", "KING RICHARD I:", "My lord, I will"],
    "newline": ["\n\n"],
    "unequal": ["First Citizen:\n", "T", "\n\n"],
}
# name: the rule of a text from one character. Hot, so that top-k and top-p often leave out who would win.
RULES = {
    "sampled": Settings(rows=1, vocab=65, temperature=0.8),
    "sampled_top_k": Settings(rows=1, vocab=65, temperature=1.5, top_k=6),
    "sampled_top_p": Settings(rows=1, vocab=65, temperature=1.4, top_p=0.7),
    "sampled_top_k_top_p": Settings(rows=1, vocab=65, temperature=1.6, top_k=9, top_p=0.8),
}
# How far at least a sampled token leads, so that float32 picks it too.
LEAD_MIN = 1.5e-3
# What a lead is called that is larger, or infinite.
LEAD_MAX = 1e3

# Logits [B, V] at a step, counted from the first new token → scores [B, V] float64, of which the greatest wins.
Scores = Callable[[Tensor, int], Tensor]


def cases() -> Iterator[CaseWriter]:
    for name, prompts in PROMPTS.items():
        yield greedy(name, prompts)
    for name, settings in RULES.items():
        yield sampled(name, settings)


def greedy(name: str, prompts: list[str]) -> CaseWriter:
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
        path = generate(single, tokens, lambda logits, _: logits)
        padded.append(torch.nn.functional.pad(tokens, (0, max(lengths) - length)))
        generated.append(path[:, length:])
        margins.append(margins_along(double, path, length, lambda logits, _: logits))
    return finish(writer, torch.cat(padded), torch.cat(generated), torch.cat(margins))


def sampled(name: str, settings: Settings) -> CaseWriter:
    """Draws a seed until every decision along the text is clear."""
    rule = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    config = trained_config(SMALL_MODEL) | {"max_new_tokens": NEW_TOKENS, "sampling": rule}
    writer, draw = new_case("generate", name, "f32", config)
    single, double = (load_trained(SMALL_MODEL, dtype) for dtype in (torch.float32, torch.float64))
    tokens = prompt_tokens(SMALL_MODEL, ["T"])
    clear = False
    while not clear:
        scores = Race(settings, draw_seed(draw))
        path = generate(single, tokens, scores)
        margins = margins_along(double, path, tokens.shape[1], scores)
        clear = scores.clear and bool(margins.min() >= LEAD_MIN)
    rule |= {"seed": scores.seed}
    return finish(writer, tokens, path[:, tokens.shape[1] :], margins)


class Race:
    """Scores by a rule of sampling; `clear` as long as top-k and top-p left out nothing that was close."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seed, self.clear = settings, seed, True

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        rows = [race(row.numpy(), self.settings, self.seed, step) for row in logits]
        self.clear &= all(clear for _, clear in rows)
        return torch.tensor(np.stack([scores for scores, _ in rows]))


def finish(writer: CaseWriter, tokens: Tensor, generated: Tensor, margins: Tensor) -> CaseWriter:
    writer.input("tokens", tokens)
    writer.output("generated", generated, rule="greedy", margins="margins")
    writer.margin("margins", margins)
    return writer


def generate(model: Gpt, prompts: Tensor, scores: Scores) -> Tensor:
    """Prompts [B, T] → the prompts with the new tokens behind them [B, T + N]."""
    context = model.config.max_position_embeddings
    tokens = prompts
    with torch.no_grad():
        for step in range(NEW_TOKENS):
            chosen = scores(model(tokens[:, -context:])[:, -1], step).argmax(dim=-1, keepdim=True)
            tokens = torch.cat([tokens, chosen], dim=1)
    return tokens


def margins_along(double: Gpt, tokens: Tensor, start: int, scores: Scores) -> Tensor:
    """How far the best score of float64 logits leads the second at each step of the path `tokens` [B, start + N] → [B, N] float64.

    The path is the float32 model's; the float64 model only says how close each decision on it was.
    """
    context = double.config.max_position_embeddings
    with torch.no_grad():
        # While the window grows, one pass sees what every step saw, because attention is causal.
        logits = [double(tokens[:, :context])[:, start - 1 : tokens.shape[1] - 1]]
        for end in range(context + 1, tokens.shape[1]):
            logits.append(double(tokens[:, end - context : end])[:, -1:])
    each = [scores(row, step) for step, row in enumerate(torch.cat(logits, dim=1).unbind(dim=1))]
    best = torch.stack(each, dim=1).topk(2, dim=-1).values
    # Infinite where top-k and top-p leave the winner alone.
    return (best[..., 0] - best[..., 1]).clamp(max=LEAD_MAX)
