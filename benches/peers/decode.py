"""How fast PyTorch generates with the models of this repository: batch 1, sampling included. JSON on stdout.

    python benches/peers/decode.py --model models/shakespeare-char --device cuda --dtypes f32,bf16
    python benches/peers/decode.py --config models/shakespeare-char/config.json --modes eager --device cpu --threads 2

Modes: `eager-no-cache` runs the whole sequence for every token; `eager` keeps a growing KV cache; `compiled` is
torch.compile with a static cache, and on CUDA one graph replay a token. Before any timing, the greedy tokens of every mode
in float32 must equal those of `eager-no-cache`. A repeat's time is the whole generation on the wall clock, from the
prompt on the device to the tokens on the host, divided by the number of tokens.
"""

import argparse
import copy
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reference-dump"))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from static_cache import FORMULATIONS, CompiledDecoder, pick
from touchstone_reference import checkpoint
from touchstone_reference.errors import BadInput
from touchstone_reference.model import Config, Gpt
from touchstone_reference.tokenizer import encode

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
MODES = ("eager-no-cache", "eager", "compiled")
# Where the two best logits are closer than this, rounding may decide, and greedy tokens may part.
MARGIN_MIN = 1e-4

Generate = Callable[[Tensor, int], list[int]]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """temperature 0: greedy. top_k 0: off."""

    temperature: float
    top_k: int


class EagerAttention(nn.Module):
    """What a PyTorch user writes for `CausalAttention`: the fused kernel, no mask where one query sees everything."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        return y.transpose(1, 2).flatten(-2)


def main() -> int:
    """Exit codes: 0 done, 1 a mode computes something else, 2 bad usage or input, 3 no such device."""
    return report(parse(), measure)


def report(args: argparse.Namespace, measure: Callable[[argparse.Namespace], dict]) -> int:
    """Prints what was measured, or why nothing was; see `main` for the exit code."""
    try:
        if args.device == "cuda" and not torch.cuda.is_available():
            print("error: --device cuda: PyTorch sees no CUDA GPU", file=sys.stderr)
            return 3
        measured = measure(args)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WrongTokens as error:
        print(f"wrong tokens: {error}", file=sys.stderr)
        return 1
    print(json.dumps(measured, indent=2))
    return 0


def options(description: str | None) -> argparse.ArgumentParser:
    """The command line that all peers share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="model folder")
    source.add_argument("--config", type=Path, help="a config.json; weights are random")
    option("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    option("--temperature", type=float, default=0.8)
    option("--top-k", type=int, default=40)
    option("--repeats", type=int, default=20, help="timed runs a row")
    option("--warmup", type=int, default=3, help="untimed runs before them")
    option("--threads", type=int, help="CPU threads (default: PyTorch's own choice)")
    option("--seed", type=int, default=1)
    return parser


def parse() -> argparse.Namespace:
    """The command line."""
    parser = options(__doc__)
    option = parser.add_argument
    option("--dtypes", default="f32", help="comma-separated: f32, bf16")
    option("--modes", help=f"comma-separated: {', '.join(MODES)} (default: all on CUDA, without compiled on the CPU)")
    option("--prompt", default="\n", help="text to start from, for a model folder")
    option("--new-tokens", type=int, default=100)
    option("--formulations", default="explicit", help=f"comma-separated ways to write the compiled step: {', '.join(FORMULATIONS)}")
    option("--inductor", choices=("default", "coordinate-descent"), default="coordinate-descent", help="tuning of the compiled mode")
    return parser.parse_args()


class WrongTokens(Exception):
    """A mode that is faster because it computes something else."""


def measure(args: argparse.Namespace) -> dict:
    """Gate and timings of every mode and dtype asked for."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    import torch._inductor.config as inductor

    inductor.coordinate_descent_tuning = args.inductor == "coordinate-descent"
    default_modes = MODES if args.device == "cuda" else MODES[:2]
    modes = chosen("--modes", args.modes, MODES) if args.modes else list(default_modes)
    dtypes = chosen("--dtypes", args.dtypes, tuple(DTYPES))
    torch.manual_seed(args.seed)
    model, prompt = load(args)
    check_lengths(args, model.config, prompt)
    compiled = [("compiled", name) for name in chosen("--formulations", args.formulations, FORMULATIONS)]
    variants = [variant for mode in modes for variant in (compiled if mode == "compiled" else [(mode, None)])]
    gates = {variant: gate(*variant, model, prompt, args) for variant in variants}
    rows = []
    for dtype in dtypes:
        for mode, formulation in variants:
            say(f"timing {mode} {formulation or ''} {dtype}")
            head = {"mode": mode, "formulation": formulation, "dtype": dtype, "gate": gates[mode, formulation]}
            rows.append(head | timing(mode, formulation, dtype, model, prompt, args))
    return describe(args, model.config, prompt) | {"rows": rows}


def chosen(option: str, words: str, known: tuple[str, ...]) -> list[str]:
    """A comma-separated choice; an unknown word is an error."""
    names = words.split(",")
    for name in names:
        if name not in known:
            raise BadInput(f"{option} {name!r}: expected some of {', '.join(known)}")
    return names


def load(args: argparse.Namespace) -> tuple[Gpt, Tensor]:
    """The model in float32 on the device, and the prompt [1, T]."""
    if args.model:
        model = checkpoint.load_model(args.model, torch.float32)
        ids = encode(checkpoint.load_tokenizer(args.model), args.prompt)
    else:
        if args.config.name != "config.json":
            raise BadInput(f"--config {args.config}: expected a file named config.json")
        model, ids = random_model(checkpoint.load_config(args.config.parent)), [0]
    for block in model.blocks:
        block.attention.core = EagerAttention(model.config.num_attention_heads)
    return model.to(args.device), torch.tensor([ids], device=args.device)


def random_model(config: Config) -> Gpt:
    """Random weights whose greedy text varies: with PyTorch's own, a tied head repeats its input, and a gate sees nothing."""
    model = Gpt(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and not name.startswith("embedding"):
            nn.init.normal_(parameter, std=2 * parameter.shape[1] ** -0.5)
        elif name.startswith("embedding"):
            nn.init.normal_(parameter, std=0.3)
    return model


def check_lengths(args: argparse.Namespace, config: Config, prompt: Tensor) -> None:
    """Prompt and new tokens must fit the context: nothing here slides a window."""
    length, context = prompt.shape[1] + args.new_tokens, config.max_position_embeddings
    if not prompt.shape[1] or args.new_tokens < 1 or args.repeats < 1 or args.temperature < 0:
        raise BadInput("expected a prompt, at least one new token, at least one repeat and a temperature of 0 or more")
    if length > context:
        raise BadInput(f"--new-tokens {args.new_tokens}: with the prompt of {prompt.shape[1]} that is {length}, over the context of {context}")


def generator(mode: str, formulation: str | None, model: Gpt, sampling: Sampling) -> Generate:
    """The function (prompt, count) → tokens of a mode."""
    if mode == "compiled":
        return CompiledDecoder(model, sampling.temperature, sampling.top_k, formulation).generate
    return lambda prompt, count: eager(model, prompt, count, sampling, cached=mode == "eager")


@torch.no_grad()
def eager(model: Gpt, prompt: Tensor, count: int, sampling: Sampling, cached: bool) -> list[int]:
    """Generation step by step, with a growing cache or with none. Tokens stay on the device until the end."""
    caches = model.new_caches() if cached else None
    tokens, fed = prompt, prompt
    for _ in range(count):
        following = pick(model(fed, caches)[:, -1], sampling.temperature, sampling.top_k)
        tokens = torch.cat([tokens, following], dim=1)
        fed = following if cached else tokens
    return tokens[0, prompt.shape[1] :].tolist()


def gate(mode: str, formulation: str | None, model: Gpt, prompt: Tensor, args: argparse.Namespace) -> str:
    """Greedy tokens in float32 against the uncached eager ones; they may part only where the margin is rounding."""
    greedy = Sampling(0.0, 0)
    expected = eager(model, prompt, args.new_tokens, greedy, cached=False)
    found = generator(mode, formulation, model, greedy)(prompt, args.new_tokens)
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours != theirs:
            margin = margin_after(model, prompt, expected[:step])
            if margin < MARGIN_MIN:
                return f"equal for {step} tokens, then a margin of {margin:.1e}"
            raise WrongTokens(f"{mode} {formulation or ''}: token {step} is {ours}, eager-no-cache has {theirs} by a margin of {margin:.3g}")
    return f"equal for {args.new_tokens} tokens, {len(set(expected))} distinct"


@torch.no_grad()
def margin_after(model: Gpt, prompt: Tensor, tokens: list[int]) -> float:
    """How far the best logit after these tokens is ahead of the second."""
    sequence = torch.cat([prompt, torch.tensor([tokens], dtype=prompt.dtype, device=prompt.device)], dim=1)
    best, second = model(sequence)[0, -1].topk(2).values.tolist()
    return best - second


def timing(mode: str, formulation: str | None, dtype: str, model: Gpt, prompt: Tensor, args: argparse.Namespace) -> dict:
    """Median and 90th percentile over the repeats."""
    converted = copy.deepcopy(model).to(DTYPES[dtype])
    started = time.perf_counter()
    generate = generator(mode, formulation, converted, Sampling(args.temperature, args.top_k))
    for _ in range(args.warmup):
        generate(prompt, args.new_tokens)
    prepared = time.perf_counter() - started
    times_us = []
    for _ in range(args.repeats):
        started = time.perf_counter()
        tokens = generate(prompt, args.new_tokens)  # ends with a copy to the host, which waits for the device
        times_us.append((time.perf_counter() - started) * 1e6 / args.new_tokens)
    assert len(tokens) == args.new_tokens
    median, p90 = statistics.median(times_us), sorted(times_us)[int(0.9 * (len(times_us) - 1) + 0.5)]
    return {
        "us_per_token_median": round(median, 2), "us_per_token_p90": round(p90, 2),
        "ms_per_100_tokens": round(median / 10, 3), "repeats": args.repeats, "prepare_s": round(prepared, 2),
    }


def describe(args: argparse.Namespace, config: Config, prompt: Tensor) -> dict:
    """Everything that the figures depend on."""
    cuda = args.device == "cuda"
    return {
        "peer": "pytorch", "torch": torch.__version__, "model": (args.model or args.config.parent).name,
        "weights": "trained" if args.model else "random", "config": dataclasses.asdict(config),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(), "tf32": torch.backends.cuda.matmul.allow_tf32,
        "inductor": args.inductor, "cuda_graph": cuda,
        "batch": 1, "prompt_tokens": prompt.shape[1], "new_tokens": args.new_tokens,
        "temperature": args.temperature, "top_k": args.top_k, "seed": args.seed,
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
