"""Captures any PyTorch module: one golden case for every call of every submodule, and one for the whole, with taps.

A case is self-contained: its inputs are what the submodule was given in the module's own precision, and its truth is a
float64 copy of that submodule applied to those very inputs. So each is judged by itself, whatever went wrong before it.
"""

import argparse
import contextlib
import copy
import dataclasses
import fnmatch
import importlib
import json
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .call_tree import Call, map_tensors, record, widened
from .errors import BadInput
from .known_modules import Mapped, arguments, mapped
from .writer import CaseWriter, write_cases

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# The whole module's own case; submodules go by their paths.
WHOLE = "model"
# They hand their input on in evaluation mode: nothing to check, and many of them.
IDENTITIES = (nn.Dropout, nn.Identity)
# Containers without a forward of their own.
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# A replay in float64 that is further off than this (rms, relative) computed something else: chance, or kept state.
REPLAY_ERROR_MAX = {"f32": 0.01, "bf16": 0.25}


class NotRecorded(Exception):
    """Why a call cannot become a case."""


@dataclasses.dataclass
class Report:
    """What a capture wrote, and what it could not."""

    cases: Counter = dataclasses.field(default_factory=Counter)
    unmapped: Counter = dataclasses.field(default_factory=Counter)
    bytes: int = 0
    identities: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `capture`."""
    option = parser.add_argument
    option("--factory", required=True, metavar="PACKAGE.MODULE:FUNCTION", help="function that returns (module, inputs)")
    option("--out", type=Path, required=True, help="folder for the cases: OUT/<op>/<case>/")
    option("--dtype", choices=sorted(DTYPES), help="convert the module and its inputs first (default: as they are)")
    option("--only", default="*", metavar="PATTERN", help="record only the module paths that match, such as 'blocks.0.*'")


def run(args: argparse.Namespace) -> int:
    """The `capture` subcommand."""
    module, inputs = made_by(args.factory)
    capture(module, inputs, args.out, dtype=args.dtype, only=args.only)
    return 0


def made_by(factory: str) -> tuple[nn.Module, Any]:
    """What the user's function returns; its own errors are reported with the place they came from."""
    module_name, colon, function_name = factory.partition(":")
    if not colon:
        raise BadInput(f"--factory {factory}: expected PACKAGE.MODULE:FUNCTION")
    sys.path.insert(0, "")  # the folder one stands in, also when started as an installed script
    try:
        made = getattr(importlib.import_module(module_name), function_name)()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise BadInput(f"--factory {factory}: {type(error).__name__}: {error} ({place.filename}:{place.lineno})") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise BadInput(f"--factory {factory}: returned {type(made).__name__}, expected a pair (module, inputs)")
    return made


def capture(module: nn.Module, inputs: Any, out_dir: Path | str, dtype: str | None = None, only: str = "*") -> Report:
    """Runs `module` once, in evaluation mode, and writes a case for every call of every submodule below `out_dir`.

    `inputs`: a tensor, a tuple (positional) or a dict (by name). `dtype`: "f32" or "bf16", to convert a copy of the module and
    the inputs first. `only`: a shell pattern over module paths; the whole module is `model`. What could not be recorded
    is said on stderr, and is in the report.
    """
    args, kwargs = as_arguments(inputs)
    module = copied(module).eval()  # dropout has no truth, and the caller's module stays as it is
    if dtype is not None:
        module = module.to(DTYPES[dtype])
        cast = lambda t: t.to(DTYPES[dtype]) if t.is_floating_point() else t
        args, kwargs = map_tensors(args, cast), map_tensors(kwargs, cast)
    precision = precision_of(module, args, kwargs)
    double = copied(module).double()  # before the run, which may leave state behind
    try:
        whole = record(module, args, kwargs)
    except Exception as error:
        raise BadInput(f"the module failed on its inputs: {type(error).__name__}: {error}") from error
    if not any(fnmatch.fnmatchcase(call.path or WHOLE, only) for call in whole.walk()):
        raise BadInput(f"no module path matches {only!r}; the whole module is {WHOLE!r}")
    report = Report()
    write_cases(Path(out_dir), Session(whole, double, precision, only, report).cases())
    note_never_called(whole, report)
    print_report(report, Path(out_dir))
    return report


def copied(module: nn.Module) -> nn.Module:
    """A deep copy; some modules refuse that."""
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise BadInput(f"{type(module).__name__} cannot be copied, which its float64 twin needs: {error}") from error


def as_arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """Positional and named arguments from what the user gave."""
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def precision_of(module: nn.Module, args: tuple, kwargs: dict) -> str:
    """ "f32" or "bf16": the dtype of the first floating-point parameter, or else input."""
    tensors = [*module.parameters(), *(t for _, t in named_tensors("", [args, kwargs]))]
    dtypes = [t.dtype for t in tensors if t.is_floating_point()]
    for name, dtype in DTYPES.items():
        if dtypes and dtypes[0] == dtype:
            return name
    found = dtypes[0] if dtypes else "no floating-point tensor"
    raise BadInput(f"the module computes in {found}; golden cases are f32 or bf16 (see the dtype option)")


class Session:
    """Turns the calls of one run into cases."""

    def __init__(self, whole: Call, double: nn.Module, precision: str, only: str, report: Report) -> None:
        self.whole, self.double, self.precision, self.only, self.report = whole, double, precision, only, report

    def cases(self) -> Iterator[CaseWriter]:
        """One case a call, in the order of the calls; what fails becomes a note."""
        for name, call in numbered(self.whole.walk(), "").items():
            if not fnmatch.fnmatchcase(call.path or WHOLE, self.only):
                continue
            if isinstance(call.module, IDENTITIES):
                self.report.identities += 1
                continue
            try:
                writer = self.case(call, name)
            except (NotRecorded, ValueError) as reason:
                self.report.notes.append(f"{name}: {reason}")
                continue
            self.report.cases[writer.op] += 1
            self.report.bytes += sum(map(len, writer.files().values()))
            yield writer

    def case(self, call: Call, name: str) -> CaseWriter:
        """The case of one call, under its op if it is one."""
        found = mapped(call)
        if found is None:
            writer = self.generic_case(call, name)
            self.report.unmapped[writer.op] += 1
            return writer
        writer = CaseWriter(found.op, clean(name), self.precision, 0, found.config)
        for kind, tensors in ((writer.input, found.inputs), (writer.parameter, found.parameters)):
            for tensor_name, tensor in tensors.items():
                kind(tensor_name, tensor)
        self.mapped_outputs(writer, call, found)
        return writer

    def mapped_outputs(self, writer: CaseWriter, call: Call, found: Mapped) -> None:
        """The result, or for ops with taps every primitive op inside, the last of which is the result."""
        if found.op == "embedding":
            shape = (*found.inputs["tokens"].shape, -1)
            truth = None if found.rule == "exact" else self.replay(call).result.reshape(shape)
            writer.output("y", call.result.reshape(shape), truth=truth, rule=found.rule)
        elif found.last is None:
            writer.output(found.output, call.result, truth=self.replay(call).result)
        else:
            self.add_taps(writer, call, {found.last: found.output}, inside_ops=False)

    def generic_case(self, call: Call, name: str) -> CaseWriter:
        """A call that is no op of the format: everything under its own name, taps for the whole module."""
        tensors, config = self.split_arguments(call, name)
        writer = CaseWriter(type(call.module).__name__, clean(name), self.precision, 0, config)
        state = {clean(key): value for key, value in (*call.module.named_parameters(), *call.module.named_buffers())}
        for key, tensor in tensors.items():
            writer.input(f"input.{key}" if key in state else key, storable(tensor))
        for key, tensor in state.items():
            writer.parameter(key, storable(tensor))
        truths = dict(named_tensors("y", self.replay(call).result))
        results = dict(named_tensors("y", call.result))
        if not results:
            raise NotRecorded(f"it returned {type(call.result).__name__}, which holds no tensor")
        for key, tensor in results.items():
            writer.output(key, storable(tensor), **truth_or_exact(tensor, truths[key]))
        if call is self.whole:
            self.add_taps(writer, call, {}, inside_ops=True)
        return writer

    def add_taps(self, writer: CaseWriter, call: Call, renamed: dict[str, str], inside_ops: bool) -> None:
        """The outputs below `call` by path: truth free-running, `injected` from the golden inputs of each."""
        free_running = numbered(taps(self.replay(call), inside_ops), call.path)
        for name, tap in numbered(taps(call, inside_ops), call.path).items():
            if isinstance(tap.result, Tensor) and tap.result.is_floating_point():
                truth, injected = free_running[name].result, self.replay(tap).result
                writer.output(renamed.get(name, clean(name)), tap.result, truth=truth, injected=injected)

    def replay(self, call: Call) -> Call:
        """The float64 twin of the submodule, on the recorded inputs; refused where it is not the same computation."""
        twin = self.double.get_submodule(call.path)
        try:
            again = record(twin, widened(call.args), widened(call.kwargs))
        except Exception as error:
            raise NotRecorded(f"its float64 twin failed: {type(error).__name__}: {error}") from error
        for inner in again.walk():
            inner.path = ".".join(filter(None, (call.path, inner.path)))
        check_replay(call, again, REPLAY_ERROR_MAX[self.precision])
        return again

    def split_arguments(self, call: Call, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and plain values for `config`; anything else is noted."""
        tensors, config = {}, {}
        for key, value in arguments(call).items():
            inside = dict(named_tensors(clean(key), value))
            tensors |= inside
            if inside or value is None:
                continue
            with contextlib.suppress(TypeError, ValueError):
                config[key] = json.loads(json.dumps(value, allow_nan=False))
                continue
            self.report.notes.append(f"{name}: argument {key!r} is a {type(value).__name__}: left out of the case")
        return tensors, config


def taps(call: Call, inside_ops: bool) -> Iterator[Call]:
    """The innermost calls below `call`; dropout and the like excepted.

    `inside_ops`: go into the ops that are made of modules (the reference's embedding), down to the leaves.
    """
    for child in call.children:
        is_op = (found := mapped(child)) is not None and found.last is None
        if child.children and (inside_ops or not is_op):
            yield from taps(child, inside_ops)
        elif not isinstance(child.module, IDENTITIES):
            yield child


def numbered(calls: Iterable[Call], base: str) -> dict[str, Call]:
    """Calls by path relative to `base`; where one path was called several times, `.call0`, `.call1`, … follow."""
    calls = list(calls)
    times, seen, names = Counter(call.path for call in calls), Counter(), {}
    for call in calls:
        name = (call.path.removeprefix(f"{base}.") if base else call.path) or WHOLE
        names[f"{name}.call{seen[call.path]}" if times[call.path] > 1 else name] = call
        seen[call.path] += 1
    return names


def named_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested tuples, lists and dicts, named `name.0.key`."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (tuple, list, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from named_tensors(f"{name}.{clean(str(key))}", item)


def truth_or_exact(result: Tensor, truth: Tensor) -> dict[str, Any]:
    """Floating-point results are judged by their truth, everything else to the bit."""
    return {"truth": truth} if result.is_floating_point() else {"rule": "exact"}


def check_replay(call: Call, again: Call, error_max: float) -> None:
    """Refuses a replay with other shapes, without float64, or with other numbers than the recorded run's."""
    results, truths = dict(named_tensors("y", call.result)), dict(named_tensors("y", again.result))
    for key, result in results.items():
        truth = truths.get(key)
        if truth is None or truth.shape != result.shape:
            raise NotRecorded(f"its float64 twin returned no {key} of shape {list(result.shape)}")
        if not result.is_floating_point():
            continue
        if truth.dtype != torch.float64:
            raise NotRecorded(f"its float64 twin returned {truth.dtype}: it casts inside, so there is no truth")
        finite = truth.isfinite() & result.isfinite()
        error = (result.double() - truth)[finite].norm() / truth[finite].norm().clamp_min(torch.finfo(torch.float64).tiny)
        if error > error_max:
            raise NotRecorded(f"its float64 twin answers otherwise on the same inputs ({error:.1%} off): it keeps state, or is random")


def storable(tensor: Tensor) -> Tensor:
    """Booleans as 0 and 1: the format has no type for them."""
    return tensor.int() if tensor.dtype == torch.bool else tensor


def clean(name: str) -> str:
    """A name that is also a file name."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)


def note_never_called(whole: Call, report: Report) -> None:
    """Submodules that no hook saw."""
    called = {call.path for call in whole.walk()}
    for path, module in whole.module.named_modules():
        if path not in called and not isinstance(module, (*CONTAINERS, *IDENTITIES)):
            report.notes.append(f"{path}: {type(module).__name__} was never called (its parent may read its weights itself)")


def print_report(report: Report, out_dir: Path) -> None:
    """What was written and what was not, on stderr."""
    say = lambda line: print(line, file=sys.stderr)
    counts = ", ".join(f"{op} {count}" for op, count in sorted(report.cases.items()))
    say(f"{report.cases.total()} cases, {report.bytes / 1e6:.1f} MB, in {out_dir}: {counts}")
    if report.unmapped:
        say(f"no op of the format, so a check reports them as not checked: {', '.join(sorted(report.unmapped))}")
    if report.identities:
        say(f"left out: {report.identities} calls of Dropout or Identity, which change nothing in evaluation mode")
    for note in report.notes:
        say(f"not recorded: {note}")
