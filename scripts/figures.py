"""Makes docs/h200.md and its pictures of what scripts/gpu-check.sh left: every figure comes from there, the same files give the same bytes.

Usage: python3 scripts/figures.py IN --commit HASH --date YYYY-MM-DD [--speed-commit HASH] [--out docs] [--partial]
"""

import argparse
import datetime
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import figures_svg
from figures_inputs import (
    LARGEST_RATIO_MAX, NEW_TOKENS, OURS, ORACLE_NMSE_MAX, PICTURE, RMS_RATIO_MAX, SUMMARIES, BadInput, Inputs, Memory, Output, Sanitizer, Scenario, Suite, Timing,
    load,
)  # fmt: skip

PAGE = "h200.md"
NOT_RUN = "not run"
# More failures than this are counted, not listed.
LISTED_MAX = 20

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Any)


def main() -> int:
    """Exit codes: 0 written, whatever the figures say; 2 bad usage or input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="IN", type=Path, help="the folder that gpu-check.sh wrote")
    parser.add_argument("--commit", type=commit, required=True, help="what was measured")
    parser.add_argument("--speed-commit", type=commit, help="what speed was measured of, where that is another")
    parser.add_argument("--date", type=datetime.date.fromisoformat, required=True, help="when, as YYYY-MM-DD")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--partial", action="store_true", help="a missing input is a section that says so, not an error")
    args = parser.parse_args()
    try:
        inputs = load(args.folder, args.partial)
        files = render(inputs, args.commit, args.speed_commit or args.commit, args.date)
    except BadInput as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (args.out / name).write_text(content, encoding="utf-8")
        print(f"wrote {args.out / name}")
    return 0


def commit(word: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{7,40}", word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a commit's hash")
    return word


def render(inputs: Inputs, commit: str, speed_commit: str, date: datetime.date) -> dict[str, str]:
    """The files by name."""
    sections = [
        title(inputs, commit, date),
        speed(inputs.timings, "" if speed_commit == commit else f"Measured of commit `{speed_commit}`. "),
        chain(inputs.timings),
        ratios(inputs.outputs),
        suites(inputs),
        sanitizer(inputs.sanitizer),
        memory(inputs.memory),
    ]
    files = {PAGE: "\n\n".join(sections) + "\n"}
    if inputs.outputs is not None and any(output.rule == "gate" for output in inputs.outputs):
        files["error-ratios.svg"] = figures_svg.error_ratios(inputs.outputs)
    if inputs.picture is not None:
        files[PICTURE] = inputs.picture
    return files


def title(inputs: Inputs, commit: str, date: datetime.date) -> str:
    """What was measured, on what."""
    looked_at = inputs.looked_at or {}
    gpu = inputs.memory.gpu if inputs.memory and inputs.memory.gpu_present else None
    device = gpu or next((timing.device for timing in inputs.timings or () if timing.system.startswith("pytorch")), "an unknown device")
    facts = [
        ["GPU", looked_at.get("gpu") or gpu or "not known"],
        ["driver", looked_at.get("driver") or "not known"],
        ["commit", f"`{commit}`"],
        ["date", date.isoformat()],
    ]
    made = (
        "Written by `scripts/figures.py` from the logs of what `scripts/gpu-check.sh` runs, in one call or in several, on machines "
        "with this GPU: edit neither figures nor words here."
    )
    return f"# Measured on {device}\n\n{made}\n\n{table(['', ''], facts)}"


def speed(timings: Sequence[Timing] | None, origin: str) -> str:
    """Decoding beside each mode of PyTorch, then all else that was timed; `origin` says of what, where it must be said."""
    if timings is None:
        return f"## Speed\n\n{NOT_RUN}"
    decoding = [timing for timing in timings if timing.measure == "decode"]
    others = [timing for timing in timings if timing.measure not in ("decode", "handoffs")]
    fastest = []
    for _, group in grouped(decoding, lambda timing: (timing.model, timing.dtype)):
        ratios = [timing.times_ours for timing in group if timing.times_ours is not None]
        fastest += [min(ratios)] if ratios else []
    summary = f"The fastest PyTorch mode takes {span(fastest)} as long as Touchstone. " if fastest else ""
    parts = [
        "## Speed",
        f"{origin}{summary}Both in one run, at batch 1, {NEW_TOKENS} tokens, sampling included; medians. What the modes are, and how their tokens are\n"
        "checked before they are timed: [benches/peers](../benches/peers/README.md); the shapes without trained weights: [benches/shapes](../benches/shapes).",
        table(["model", "dtype", "system", "µs a token", "90th percentile", "of the bandwidth", "as long as ours"], [
            [timing.model, timing.dtype, bold(timing), f"{timing.median:.1f}", f"{timing.p90:.1f}", share(timing), ratio(timing)] for timing in decoding
        ], 3),
        "![Time a token against the bytes it must read](latency.svg)",
    ]  # fmt: skip
    if others:
        parts += [
            "Along the context, of batches, of prompts and of the program's start; medians. Of prompts, the share is that of the rate of a large matrix product.",
            table(["model", "dtype", "what", "system", "µs", "", "tokens/s", "share", "beside"], [
                [timing.model, timing.dtype, f"{timing.measure}: {timing.at}", bold(timing), f"{timing.median:.1f}", timing.unit.removeprefix("us "),
                 "" if timing.tokens_per_s is None else f"{timing.tokens_per_s:.0f}", share(timing), ratio(timing)] for timing in others
            ], 4),
        ]  # fmt: skip
    return "\n\n".join(parts)


def chain(timings: Sequence[Timing] | None) -> str:
    """What a step consists of, handoff by handoff; rows without cycles are whole steps."""
    found = [timing for timing in timings or () if timing.measure == "handoffs"]
    if not found:
        return f"## Chain\n\n{NOT_RUN}"
    rows = []
    for timing in found:
        cells = [""] * 3 if timing.cycles is None else [f"{value:.0f}" for value in timing.cycles]
        what = f"**{timing.at}**" if timing.cycles is None else timing.at.rpartition(": ")[2]
        rows.append([timing.model, timing.dtype, what, *cells, f"{timing.median:.1f}"])
    return "\n\n".join([
        "## Chain",
        "A decoder's step is a chain: each handoff needs the one before. Read by one thread's clock: cycles of work since the handoff before, then cycles until\n"
        "what the handoff brings is there, each time. Reading costs some cycles itself; how fast the same step is without stands above.",
        table(["model", "dtype", "what the handoff brings", "a step", "work", "waiting", "µs a step"], rows, 3),
    ])  # fmt: skip


def bold(timing: Timing) -> str:
    """The system's name, ours set off."""
    name = timing.system.replace("touchstone", "Touchstone").replace("pytorch", "PyTorch")
    return f"**{name}**" if timing.system == OURS else name


def share(timing: Timing) -> str:
    return "" if timing.share is None else f"{timing.share:.1%}"


def ratio(timing: Timing) -> str:
    """How long a peer takes beside us, or the end of the context beside its beginning."""
    if timing.times_ours is not None:
        return f"{times(timing.times_ours)} ×"
    return "" if timing.times_first is None else f"{times(timing.times_first)} × the first"


def times(ratio: float) -> str:
    return figures_svg.significant(ratio)


def span(ratios: Sequence[float]) -> str:
    low, high = times(min(ratios)), times(max(ratios))
    return f"{low} times" if low == high else f"{low} to {high} times"


def ratios(outputs: Sequence[Output] | None) -> str:
    """The gate's figures by op, dtype and backend; the other rules' below; every failure by name."""
    if outputs is None:
        return f"## Error ratios\n\n{NOT_RUN}"
    gated = [output for output in outputs if output.rule == "gate"]
    rows = []
    for (op, dtype, backend), group in grouped(gated, lambda output: (output.op, output.dtype, output.backend)):
        ratio = [math.inf if output.ratio is None else output.ratio for output in group]
        largest = [math.inf if output.max_ratio is None else output.max_ratio for output in group]
        # What has no shape, and what is not finite, has no channels.
        channel = [output.channel_ratio for output in group if output.channel_ratio is not None]
        shown = map(decimals, (statistics.median(ratio), max(ratio), max(channel, default=math.inf), max(largest)))
        rows.append([op, dtype, backend, str(len(group)), *shown, failed(group)])
    header = ["op", "dtype", "backend", "outputs", "median ratio", "worst ratio", "worst channel", "largest errors", "failed"]
    parts = [
        "## Error ratios",
        "Our rms error against the float64 truth over that of PyTorch in the same dtype: 1 is as accurate as PyTorch. An output fails above\n"
        f"{RMS_RATIO_MAX:g}, a channel above a limit that grows as its rows get fewer, the ratio of the largest errors above {LARGEST_RATIO_MAX:g}.",
    ]
    if gated:
        parts += [table(header, rows, 3), "![Error ratios by op, tap and backend](error-ratios.svg)"]
    others = [output for output in outputs if output.rule != "gate"]
    if others:
        parts += ["What is not judged by a ratio:", other_rules(others)]
    failures = (output for output in outputs if not output.passed)
    return "\n\n".join(parts + failure_list(f"`{output.check}`, {output.name}: {output.reason}" for output in failures))


def other_rules(outputs: Sequence[Output]) -> str:
    """Outputs that must be equal, and the oracle's, by rule and backend."""
    rows = []
    for (rule, backend), group in grouped(outputs, lambda output: (output.rule, output.backend)):
        errors = [math.inf if output.nmse is None else output.nmse for output in group]
        notes = {
            "exact": "equal to PyTorch's",
            "greedy": f"PyTorch's tokens; near ties: {sum(output.near_ties for output in group)}",
            "oracle": f"worst mean square error over mean square: {max(errors):.1e}, allowed {ORACLE_NMSE_MAX:.0e}",
        }
        ops = ", ".join(sorted({output.op for output in group}))
        rows.append([rule, backend, str(len(group)), failed(group), notes[rule], ops])
    return table(["rule", "backend", "outputs", "failed", "held to", "ops"], rows, 2, 4)


def failed(outputs: Iterable[Output]) -> str:
    return marked(sum(not output.passed for output in outputs))


def marked(count: int) -> str:
    """A count of failures, that cannot be overlooked."""
    return f"**{count} FAILED**" if count else "0"


def decimals(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "not finite"


def suites(inputs: Inputs) -> str:
    """Trials of both suites, once and repeated."""
    rows, failures = [], []
    for label, found in (("", inputs.suites), (", repeated", inputs.repeats)):
        for name, suite in found.items():
            rows.append([name + label, *suite_cells(suite)])
            failures += [f"{name}{label}: `{trial}`: {message}" for trial, message in (suite.failures if suite else ())]
    header = ["suite", "runs", "passed", "failed", "not checked"]
    parts = ["## Suites", "Trials, over all runs of the suite.", table(header, rows, 1)]
    return "\n\n".join(parts + failure_list(failures))


def suite_cells(suite: Suite | None) -> list[str]:
    if suite is None:
        return [NOT_RUN, "", "", ""]
    if not suite.runs:
        return ["**FAILED**: no run came to a result", "", "", ""]
    passed, ignored = (sum(getattr(run, name) for run in suite.runs) for name in ("passed", "ignored"))
    runs = ", ".join([str(len(suite.runs)), *(f"**FAILED**: {run}" for run in suite.aborted)])
    return [runs, str(passed), marked(sum(run.failed for run in suite.runs)), str(ignored)]


def sanitizer(tools: dict[str, Sanitizer | None]) -> str:
    """compute-sanitizer's own words, and whether they are good ones."""
    rows = [[tool, *sanitizer_cells(tool, found)] for tool, found in tools.items()]
    return (
        "## compute-sanitizer\n\nEach tool watches the functional suite's trials on the GPU, but for whole texts and the longest cases of models; racecheck is "
        "without models and what picks as their decoders do, since what decodes in one launch does not end under it.\n\n"
        + table(["tool", "trials passed", "failed", "what it says", "verdict"], rows, 1, 3)
    )  # fmt: skip


def sanitizer_cells(tool: str, found: Sanitizer | None) -> list[str]:
    if found is None:
        return ["", "", "", NOT_RUN]
    runs = found.suite.runs
    failures = sum(run.failed for run in runs)
    said = [kind for kind, _ in found.summaries]
    quiet = all(set(re.findall(r"\d+", words)) == {"0"} for _, words in found.summaries)
    # A process a run, and each must have come to its end.
    problems = [f"no {kind.lower()}" for kind in SUMMARIES[tool] if said.count(kind) < max(1, len(runs))]
    problems += [] if quiet else ["errors"]
    problems += [] if found.passed else ["no trial passed"]
    problems += ["trials failed"] if failures else []
    problems += found.suite.aborted
    words = "; ".join(dict.fromkeys(f"{kind.lower()}: {words}" for kind, words in found.summaries))
    return [str(found.passed), marked(failures), words, f"**FAILED**: {', '.join(problems)}" if problems else "clean"]


def memory(found: Memory | None) -> str:
    """Scenarios by backend; then every planted leak, and who saw it."""
    if found is None:
        return f"## Memory\n\n{NOT_RUN}"
    rows = []
    for backend, group in grouped(found.scenarios, lambda scenario: scenario.backend):
        verdicts = [scenario.verdict for scenario in group]
        counts = [str(verdicts.count("clean")), str(verdicts.count("planted, found")), marked(verdicts.count("FAILED"))]
        rows.append([backend, str(len(group)), span_of_counts(scenario.iterations for scenario in group), *counts])
    header = ["backend", "scenarios", "runs of each", "clean", "planted, found", "failed"]
    parts = ["## Memory", "Clean: after its runs, every witness is back where it was before them.", table(header, rows, 1)]
    if not found.gpu_present:
        parts.append(f"{NOT_RUN}: every scenario on a GPU ({found.gpu})")
    elif found.nvml_silent is not None:
        parts.append(f"{NOT_RUN}: NVML as a witness ({found.nvml_silent}); `cuMemGetInfo`, which sees other processes too, stands alone.")
    planted = [scenario for scenario in found.scenarios if scenario.planted]
    if planted:
        parts.append("Planted on purpose, to show that the suite can find it:")
        parts.append(table(["planted", "backend", "seen by", "verdict"], [planted_cells(scenario) for scenario in planted]))
    unplanted = [scenario for scenario in found.scenarios if scenario.verdict == "FAILED" and not scenario.planted]
    return "\n\n".join(parts + failure_list(f"`{scenario.name}` on {scenario.backend}" for scenario in unplanted))


def span_of_counts(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def planted_cells(scenario: Scenario) -> list[str]:
    name = scenario.name.removeprefix("planted/").replace("-", " ")
    if scenario.seen_by is None:
        by = "the parent process"
    elif scenario.verdict == "clean":
        by = "nobody: it is no leak, and must not be called one"
    else:
        by = ", ".join(scenario.seen_by) or "the scenario itself"
    verdict = {"clean": "clean", "planted, found": "found", "FAILED": "**FAILED**"}[scenario.verdict]
    return [name, scenario.backend, by, verdict]


def failure_list(failures: Iterable[str]) -> list[str]:
    """Lines for what failed; none where nothing did."""
    found = list(failures)
    lines = [f"- FAILED: {failure}" for failure in found[:LISTED_MAX]]
    if len(found) > LISTED_MAX:
        lines.append(f"- and {len(found) - LISTED_MAX} more")
    return ["\n".join(lines)] if lines else []


def grouped(items: Sequence[Item], key: Callable[[Item], Key]) -> list[tuple[Key, list[Item]]]:
    """Pairs of key and its items, by key."""
    keys = sorted({key(item) for item in items})
    return [(wanted, [item for item in items if key(item) == wanted]) for wanted in keys]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int | None = None, numbers_to: int | None = None) -> str:
    """In Markdown; the columns between the two are numbers, and right-aligned."""
    numbers = range(len(header))[numbers_from:numbers_to] if numbers_from is not None else ()
    rule = ["--:" if column in numbers else "---" for column in range(len(header))]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, rule, *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


if __name__ == "__main__":
    sys.exit(main())
