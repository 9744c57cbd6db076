"""How fast PyTorch runs the pass over a prompt: batch 1, logits of the last position, one token picked. JSON on stdout.

    python benches/peers/prefill.py --config benches/shapes/gpt2-xl/config.json --lengths 1024 --dtype bf16

Modes: `eager`, and on CUDA `graph`, the same pass replayed as one CUDA graph, so that no time goes to launches. Before any timing, the
replayed logits must be the eager ones, up to the order of sums. A repeat's time is that of the pass, from the prompt on the device to the token on the host. On
CUDA, the rate of one large matrix product stands beside: what the device can do in this precision.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import decode
from static_cache import pick
from touchstone_reference.errors import BadInput
from touchstone_reference.model import Gpt

# Rows, columns and depth of the product whose rate is the limit.
MATRIX = 8192


def main() -> int:
    """Exit codes as those of decode.py."""
    return decode.report(parse(), measure)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = decode.options(__doc__)
    parser.add_argument("--dtype", choices=tuple(decode.DTYPES), default="f32")
    parser.add_argument("--lengths", default="16,64,256,1024", help="comma-separated: tokens of the prompts")
    args = parser.parse_args()
    args.prompt = "\n"
    return args


def measure(args: argparse.Namespace) -> dict:
    """A row for every length and mode."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    cuda, dtype = args.device == "cuda", decode.DTYPES[args.dtype]
    model = decode.load(args)[0].to(dtype)
    rows = []
    for length in lengths_of(args.lengths, model.config.max_position_embeddings):
        tokens = (torch.arange(length, device=args.device) % model.config.vocab_size)[None]
        passes: dict[str, Callable[[], Tensor]] = {"eager": lambda: last_logits(model, tokens)}
        if cuda:
            passes["graph"] = captured(passes["eager"])
            check(passes["eager"](), passes["graph"](), length)
        for mode, run in passes.items():
            decode.say(f"timing {mode}, {length} tokens")
            times_us = timed(lambda: pick(run(), args.temperature, args.top_k).item(), args)
            rows.append({"mode": mode, "tokens": length} | summary(times_us))
    environment = {"peer": "pytorch", "torch": torch.__version__, "dtype": args.dtype, "threads": torch.get_num_threads()}
    environment["device"] = torch.cuda.get_device_name() if cuda else decode.platform.processor() or decode.platform.machine()
    return environment | {"matrix_flop_per_s": matrix_rate(dtype, args) if cuda else None, "rows": rows}


def lengths_of(words: str, context: int) -> list[int]:
    """The lengths asked for; one that is no length, or over the context, is an error."""
    try:
        lengths = [int(word) for word in words.split(",")]
    except ValueError:
        raise BadInput(f"--lengths {words!r}: expected numbers with commas between") from None
    for length in lengths:
        if not 1 <= length <= context:
            raise BadInput(f"--lengths {length}: expected 1 to {context}, the model's context")
    return lengths


@torch.no_grad()
def last_logits(model: Gpt, tokens: Tensor) -> Tensor:
    """tokens [1, T] → logits [1, V] of the last position, keys and values computed and dropped."""
    x = model.embedding(tokens)
    for block in model.blocks:
        x = block(x)
    return F.linear(model.final_norm(x[:, -1]), model.embedding.token.weight)


@torch.no_grad()
def captured(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The pass as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def check(expected: Tensor, found: Tensor, length: int) -> None:
    """A graph that computes something else is not fast, it is wrong."""
    worst = (expected.float() - found.float()).abs().max().item()
    if not worst <= 0.02 * expected.abs().max().item():
        raise decode.WrongTokens(f"graph, {length} tokens: off by up to {worst:.3g} from eager")


def timed(run: Callable[[], object], args: argparse.Namespace) -> list[float]:
    """Microseconds of each repeat; `run` ends with a copy to the host, which waits for the device."""
    for _ in range(args.warmup):
        run()
    times_us = []
    for _ in range(args.repeats):
        started = time.perf_counter()
        run()
        times_us.append((time.perf_counter() - started) * 1e6)
    return times_us


def summary(times_us: list[float]) -> dict:
    """Median and 90th percentile over the repeats."""
    p90 = sorted(times_us)[int(0.9 * (len(times_us) - 1) + 0.5)]
    return {"us_median": round(statistics.median(times_us), 2), "us_p90": round(p90, 2), "repeats": len(times_us)}


def matrix_rate(dtype: torch.dtype, args: argparse.Namespace) -> float:
    """Operations a second of a product of two random square matrices, the best of the repeats."""
    a, b = (torch.randn(MATRIX, MATRIX, dtype=dtype, device=args.device) for _ in range(2))
    product = torch.empty_like(a)

    def run() -> None:
        for _ in range(10):
            torch.mm(a, b, out=product)
        torch.cuda.synchronize()

    return 10 * 2 * MATRIX**3 / (min(timed(run, args)) * 1e-6)


if __name__ == "__main__":
    sys.exit(main())
