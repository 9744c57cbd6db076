"""What scripts/gpu-check.sh leaves, parsed: a field that is missing, of another type or not finite is an error that names the file."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

# The gate's limits. golden/src/judge.rs holds them too, and a test compares the two.
RMS_RATIO_MAX, LARGEST_RATIO_MAX, ORACLE_NMSE_MAX = 2.0, 5.0, 1e-24

# What each tool of the sanitizer must have said at its end; without it, the tool did not get that far.
SUMMARIES = {
    "memcheck": ("LEAK SUMMARY", "ERROR SUMMARY"),
    "racecheck": ("RACECHECK SUMMARY",),
    "initcheck": ("ERROR SUMMARY",),
    "synccheck": ("ERROR SUMMARY",),
}
SUITES = ("functional", "memory")
OURS = "touchstone"
# What bench printed, in the order of the page, and what it drew.
SPEEDS = tuple(f"speed-{name}.json" for name in ("peers", "bf16", "f32", "large", "service", "prefill", "handoffs", "handoffs-large"))
PICTURE = "latency.svg"
# Tokens of a generation: the page speaks of them.
NEW_TOKENS = 200

RESULT = re.compile(r"^test result: (?:ok|FAILED)\. (\d+) passed; (\d+) failed; (\d+) ignored; .*?(\d+) filtered out", re.M)
PASSED = re.compile(r"^test (.+?) +\.\.\. ok$", re.M)
FAILURE = re.compile(r"^---- (.+) ----\n(.*)$", re.M)
ABORTED = re.compile(r"^run \d+ of \d+(?= failed$)", re.M)
COMPARED = re.compile(r"^(\d+) outputs compared, (\d+) failed", re.M)
SUMMARY = re.compile(r"^=+ ((?:LEAK|ERROR|RACECHECK) SUMMARY): (.+?)\s*$", re.M)
LOOKED_AT = re.compile(r"^(?:ok|missing) +(gpu|driver) +(.+)$", re.M)

Parsed = TypeVar("Parsed")


class BadInput(Exception):
    """An input that is missing or not what its writer writes."""


@dataclass(frozen=True)
class Output:
    """One output of one check, judged: a row of functional.json."""

    op: str
    case: str
    backend: str
    mode: str
    name: str
    dtype: str
    rule: str
    # None where the rule has none, or where it is not finite: then the output failed.
    ratio: float | None
    channel_ratio: float | None
    max_ratio: float | None
    nmse: float | None
    near_ties: int
    passed: bool
    reason: str

    @property
    def check(self) -> str:
        """Its trial's name."""
        return f"{self.case} {self.backend} {self.mode}".rstrip()


@dataclass(frozen=True)
class Scenario:
    """A row of memory.json."""

    name: str
    backend: str
    iterations: int
    verdict: str
    # Who saw memory go, in the suite's words; None where the scenario's process gave no verdict.
    seen_by: tuple[str, ...] | None

    @property
    def planted(self) -> bool:
        return self.name.startswith("planted/")


@dataclass(frozen=True)
class Memory:
    """memory.json."""

    gpu: str
    gpu_present: bool
    nvml_silent: str | None
    scenarios: tuple[Scenario, ...]


@dataclass(frozen=True)
class Timing:
    """A row of what bench measured; times in microseconds."""

    model: str
    dtype: str
    device: str
    measure: str
    at: str
    system: str
    unit: str
    median: float
    p90: float
    # None where the measurement has none.
    tokens_per_s: float | None
    share: float | None
    times_ours: float | None
    times_first: float | None
    # Of a handoff: how often it comes in a step, and cycles of work up to it and of waiting for it, each time.
    cycles: tuple[float, float, float] | None


@dataclass(frozen=True)
class Trials:
    """One run of a suite, from its log."""

    passed: int
    failed: int
    ignored: int
    filtered_out: int


@dataclass(frozen=True)
class Suite:
    """A suite's log: one run, or several of them."""

    runs: tuple[Trials, ...]
    # The run that ended a series of them, in the words of gpu-check.sh: a crash brings no result to count.
    aborted: tuple[str, ...]
    # Name of the trial and the first line of its message.
    failures: tuple[tuple[str, str], ...]
    # Outputs compared and failed; the memory suite has none.
    compared: tuple[int, int] | None


@dataclass(frozen=True)
class Sanitizer:
    """A tool's log: what it said at its end, and the suite that it watched."""

    summaries: tuple[tuple[str, str], ...]
    # The different trials that passed: several processes may run one, each watching a part of it.
    passed: int
    suite: Suite


@dataclass(frozen=True)
class Inputs:
    """Everything; None where --partial allows a file to be missing."""

    looked_at: dict[str, str] | None
    outputs: tuple[Output, ...] | None
    memory: Memory | None
    timings: tuple[Timing, ...] | None
    picture: str | None
    suites: dict[str, Suite | None]
    repeats: dict[str, Suite | None]
    sanitizer: dict[str, Sanitizer | None]


def load(folder: Path, partial: bool) -> Inputs:
    """Reads the folder. Without `partial`, every file must be there."""
    missing: list[str] = []

    def file(name: str, parse: Callable[[str], Parsed]) -> Parsed | None:
        path = folder / name
        if not path.is_file():
            missing.append(str(path))
            return None
        try:
            return parse(path.read_text(encoding="utf-8", errors="replace"))
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error

    inputs = Inputs(
        looked_at=file("doctor.log", lambda text: dict(reversed(LOOKED_AT.findall(text)))),
        outputs=file("functional.json", parse_functional),
        memory=file("memory.json", parse_memory),
        timings=joined([file(name, parse_speed) for name in SPEEDS]),
        picture=file(PICTURE, parse_picture),
        suites={suite: file(f"{suite}.log", parse_suite) for suite in SUITES},
        repeats={suite: file(f"repeat-{suite}.log", parse_suite) for suite in SUITES},
        sanitizer={tool: file(f"sanitizer-{tool}.log", parse_sanitizer) for tool in SUMMARIES},
    )
    if missing and not partial:
        raise BadInput(f"missing: {', '.join(missing)} (scripts/gpu-check.sh writes them; --partial goes without)")
    check_one_run(inputs)
    return inputs


def check_one_run(inputs: Inputs) -> None:
    """Files of different runs or machines must not meet on one page: a suite that dies leaves the JSON of the run before."""
    log = inputs.suites["functional"]
    if inputs.outputs is not None and log is not None:
        found = (len(inputs.outputs), sum(not output.passed for output in inputs.outputs))
        if log.compared != found:
            raise BadInput(f"functional.json: {found[0]} outputs, {found[1]} failed; functional.log: {log.compared}: not of one run")
    if inputs.memory is not None and inputs.memory.gpu_present and inputs.timings is not None:
        for timing in inputs.timings:
            if timing.system.startswith("pytorch") and timing.device != inputs.memory.gpu:
                raise BadInput(f"memory.json is of {inputs.memory.gpu!r}, the peers of {timing.device!r}: not of one machine")


def parse_functional(text: str) -> tuple[Output, ...]:
    """In an order of its own: checks end in any order, but the outputs of each are in the order of computation."""
    outputs = [parse_output(row) for row in records(parse_json(text), "the report")]
    return tuple(sorted(outputs, key=lambda output: (output.case, output.backend, output.mode)))


def parse_output(row: dict[str, Any]) -> Output:
    case = field(row, "case", str)
    channel = field(row, "worst_channel", dict, optional=True)
    output = Output(
        op=case.split("/")[0], case=case, backend=field(row, "backend", str), mode=field(row, "mode", str),
        name=field(row, "output", str), dtype=field(row, "dtype", str), rule=field(row, "rule", str),
        ratio=field(row, "ratio", float, optional=True),
        channel_ratio=field(channel, "ratio", float, optional=True) if channel else None,
        max_ratio=field(row, "max_ratio", float, optional=True), nmse=field(row, "nmse", float, optional=True),
        near_ties=len(field(row, "near_ties", list)), passed=field(row, "passed", bool),
        reason=field(row, "reason", str, optional=True) or "",
    )  # fmt: skip
    unjudged = {"gate": output.ratio, "oracle": output.nmse, "exact": 0.0, "greedy": 0.0}
    if output.rule not in unjudged:
        raise BadInput(f"{case}: rule {output.rule!r}: expected one of {', '.join(unjudged)}")
    if output.passed and unjudged[output.rule] is None:
        raise BadInput(f"{case} {output.name} on {output.backend} passes by the rule {output.rule!r}, without a figure")
    return output


def parse_memory(text: str) -> Memory:
    report = record(parse_json(text), "the report")
    environment = field(report, "environment", dict)
    (presence, gpu), *others = field(environment, "gpu", dict).items()
    if others or presence not in ("present", "absent", "broken"):
        raise BadInput(f"environment.gpu is {environment['gpu']}, expected one of present, absent, broken")
    scenarios = sorted(map(parse_scenario, records(field(report, "rows", list), "rows")), key=lambda row: (row.backend, row.name))
    return Memory(str(gpu), presence == "present", field(environment, "nvml_silent", str, optional=True), tuple(scenarios))


def parse_scenario(row: dict[str, Any]) -> Scenario:
    verdict, figures = field(row, "verdict", str), field(row, "figures", dict, optional=True)
    if verdict not in ("clean", "planted, found", "FAILED"):
        raise BadInput(f"verdict {verdict!r}: expected clean, 'planted, found' or FAILED")
    seen_by = None if figures is None else witnesses(figures)
    return Scenario(field(row, "scenario", str), field(row, "backend", str), field(row, "iterations", int), verdict, seen_by)


def witnesses(figures: dict[str, Any]) -> tuple[str, ...]:
    """Who saw memory go, by the rule of memory-tests/src/verdict.rs: the driver's figure counts unless NVML knows that it is not ours."""
    driver, nvml = (field(figures, name, int, optional=True) for name in ("driver_bytes", "nvml_bytes"))
    seen = {
        "the ledger": field(figures, "ledger", str) != "",
        "`cuMemGetInfo`": driver is not None and driver > 0 and (nvml is None or nvml > 0),
        "NVML": nvml is not None and nvml > 0,
        "the host's allocator": (field(figures, "host_bytes", int), field(figures, "host_blocks", int)) != (0, 0),
    }
    return tuple(witness for witness, saw in seen.items() if saw)


def joined(parts: list[tuple[Timing, ...] | None]) -> tuple[Timing, ...] | None:
    """All that there is, or None where there is nothing."""
    found = [part for part in parts if part is not None]
    return tuple(timing for part in found for timing in part) if found else None


def parse_speed(text: str) -> tuple[Timing, ...]:
    """What `touchstone bench --json` printed, model by model and dtype by dtype."""
    models = records(field(record(parse_json(text), "the report"), "models", list), "models")
    timings = tuple(timing for model in models for timing in parse_model(model))
    for timing in timings:
        where = f"{timing.model} {timing.dtype} {timing.measure} {timing.at} {timing.system}"
        ours = [row for row in timings if place(row) == place(timing) and row.system == OURS]
        if len(ours) != 1 or timing.median <= 0 or timing.p90 <= 0:
            raise BadInput(f"{where}: expected times above 0 and one row of {OURS}, found {len(ours)}")
        if (timing.times_ours is None) == (timing.system != OURS):
            raise BadInput(f"{where}: times_ours is {timing.times_ours}: expected of every peer, and of no row of {OURS}")
    return timings


def place(timing: Timing) -> tuple[str, str, str, str]:
    """What a peer's row shares with ours."""
    return (timing.model, timing.dtype, timing.measure, timing.at)


def parse_model(model: dict[str, Any]) -> list[Timing]:
    """One model in one dtype: ours on the device as we name it, peers on the device as they name it."""
    name, dtype = field(model, "model", str), field(model, "dtype", str)
    if field(model, "new_tokens", int) != NEW_TOKENS:
        raise BadInput(f"{name} {dtype}: new_tokens is {model['new_tokens']}, expected {NEW_TOKENS}")
    ours, peers = field(model, "device", str), field(model, "peers", dict, optional=True)
    timings = []
    for row in records(field(model, "rows", list), "rows"):
        system = field(row, "system", str)
        device = field(record(peers, "peers"), "device", str) if system.startswith("pytorch") else ours
        share = figure(row, "bandwidth_share")
        timings.append(Timing(
            name, dtype, device, field(row, "measure", str), field(row, "at", str), system, field(row, "unit", str),
            field(row, "median", float), field(row, "p90", float), figure(row, "tokens_per_s"),
            figure(row, "matrix_share") if share is None else share, figure(row, "times_ours"), figure(row, "times_first"), parse_cycles(row),
        ))  # fmt: skip
    return timings


def parse_cycles(row: dict[str, Any]) -> tuple[float, float, float] | None:
    """What a handoff takes, of a row that is one."""
    cycles = field(row, "cycles", dict, optional=True) if "cycles" in row else None
    return None if cycles is None else (field(cycles, "times", float), field(cycles, "work", float), field(cycles, "wait", float))


def figure(row: dict[str, Any], name: str) -> float | None:
    """A figure that some measurements lack."""
    return field(row, name, float) if name in row else None


def parse_picture(text: str) -> str:
    if not text.startswith("<svg"):
        raise BadInput("is no SVG picture")
    return text


def parse_suite(text: str) -> Suite:
    runs = tuple(Trials(*map(int, counts)) for counts in RESULT.findall(text))
    compared = COMPARED.search(text)
    counts = (int(compared[1]), int(compared[2])) if compared else None
    return Suite(runs, tuple(ABORTED.findall(text)), tuple(FAILURE.findall(text)), counts)


def parse_sanitizer(text: str) -> Sanitizer:
    return Sanitizer(tuple(SUMMARY.findall(text)), len(set(PASSED.findall(text))), parse_suite(text))


def parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f"is not JSON: {error}") from error


def records(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadInput(f"{name} is not a list with something in it")
    return [record(row, f"{name}[{index}]") for index, row in enumerate(value)]


def record(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{name} is not an object")
    return value


def field(of: dict[str, Any], name: str, kind: type[Parsed], optional: bool = False) -> Any:
    """A field of that type; a whole number is a float too, a boolean is no number."""
    if name not in of:
        raise BadInput(f"a record has no field {name!r}: {json.dumps(of)[:200]}")
    value = of[name]
    if value is None and optional:
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise BadInput(f"{name} is {json.dumps(value)[:200]}, expected a {kind.__name__}")
    return value
