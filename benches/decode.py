"""Times the prompt program beside PyTorch: 100 new tokens at batch 1, temperature 0.8, top-k 40, in one run on one machine.

Ours is the program's own clock, from the first token of the prompt's pass to the last new token, sampling included. PyTorch's figures are
those of peers/decode.py, which checks its tokens before it times; ours are what the functional suite checks.

Usage: python3 benches/decode.py [--device cuda|cpu] [--prompt-binary FILE] [--models NAME,…] [--out FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKENS, REPEATS, WARM_UP, PROMPT = 100, 20, 3, "\n"


def main() -> int:
    """Prints a table, writes the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--prompt-binary", type=Path, default=ROOT / "bundle" / "prompt")
    parser.add_argument("--models", default="shakespeare-char-small,shakespeare-char")
    parser.add_argument("--peer-modes", help="as in peers/decode.py (default: eager with a cache, and compiled on a GPU)")
    parser.add_argument("--out", type=Path, help="where the rows go as JSON")
    args = parser.parse_args()
    rows = []
    for name in args.models.split(","):
        rows += [ours(args, name, dtype) for dtype in dtypes(args.device)]
        rows += peers(args, name)
    for row in rows:
        print("{model:24} {system:28} {dtype:5} {ms_per_100:9.2f} ms / 100 tokens   p90 {p90_ms_per_100:9.2f}".format(**row))
    if args.out:
        args.out.write_text(json.dumps({"device": rows[0]["device"], "rows": rows}, indent=2) + "\n")
    return 0


def dtypes(device: str) -> list[str]:
    """What is timed: on the CPU activations are float32 whatever the weights are stored in."""
    return ["f32", "bf16"] if device == "cuda" else ["f32"]


def ours(args: argparse.Namespace, name: str, dtype: str) -> dict:
    """The prompt program, several generations in one process, the first few not counted."""
    command = [
        str(args.prompt_binary), "--model", str(ROOT / "models" / name), "--device", args.device, "--dtype", dtype, "--json", "--stats",
        "--max-new-tokens", str(TOKENS), "--temperature", "0.8", "--top-k", "40", "--seed", "1",
        "--num-samples", str(WARM_UP + REPEATS), PROMPT,
    ]  # fmt: skip
    answer = json.loads(run(command))
    times = []
    for sample in answer["samples"][WARM_UP:]:
        stats = sample["stats"]
        times.append(stats["prefill_ms"] + stats["decode_us"] * (stats["tokens"] - 1) / 1e3)
    return row(name, "touchstone", dtype, times, answer["device"])


def peers(args: argparse.Namespace, name: str) -> list[dict]:
    """PyTorch's rows for the same model."""
    modes = args.peer_modes or ("eager,compiled" if args.device == "cuda" else "eager")
    command = [
        sys.executable, str(ROOT / "benches" / "peers" / "decode.py"), "--model", str(ROOT / "models" / name), "--device", args.device,
        "--dtypes", ",".join(dtypes(args.device)), "--modes", modes, "--new-tokens", str(TOKENS), "--repeats", str(REPEATS),
        "--prompt", PROMPT,
    ]  # fmt: skip
    answer = json.loads(run(command))
    return [
        {
            "model": name,
            "system": " ".join(filter(None, ["pytorch", peer["mode"], peer["formulation"]])),
            "dtype": peer["dtype"],
            "ms_per_100": peer["us_per_token_median"] / 10,
            "p90_ms_per_100": peer["us_per_token_p90"] / 10,
            "device": answer["device"],
        }
        for peer in answer["rows"]
    ]


def row(model: str, system: str, dtype: str, times: list[float], device: str) -> dict:
    """Median and 90th percentile of milliseconds a generation of 100 tokens."""
    p90 = statistics.quantiles(times, n=10)[-1]
    return {
        "model": model, "system": system, "dtype": dtype, "ms_per_100": round(statistics.median(times), 3),
        "p90_ms_per_100": round(p90, 3), "device": device,
    }  # fmt: skip


def run(command: list[str]) -> str:
    """A command's output; its complaints pass through."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
