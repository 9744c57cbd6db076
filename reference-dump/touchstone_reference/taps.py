"""Runs a module and records what every submodule of interest was given and returned.

Three runs of numbers come out of it: the reference's own, the float64 model's (the truth of the free-running check), and
per submodule the float64 submodule applied to the *reference's* inputs (the truth of the injected check).
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from .writer import CaseWriter

# The taps within a block, in the order of computation; the block's own result, `add2`, comes after them.
BLOCK_INNER = (
    "ln1", "attention.q", "attention.k", "attention.v", "attention.core", "attention.out", "add1",
    "ln2", "mlp.up", "mlp.gelu", "mlp.down",
)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a submodule: its positional arguments and its result [B, T, ...]."""

    args: tuple
    result: Tensor


def record_calls(module: nn.Module, paths: Iterable[str], run: Callable[[nn.Module], None]) -> dict[str, list[Call]]:
    """Calls `run(module)` and returns every call of the submodules at `paths`, in order."""
    calls: dict[str, list[Call]] = {path: [] for path in paths}
    hooks = []
    for path, seen in calls.items():
        hook = lambda _module, args, result, seen=seen: seen.append(Call(args, result.clone()))
        hooks.append(module.get_submodule(path).register_forward_hook(hook))
    try:
        with torch.no_grad():
            run(module)
    finally:
        for handle in hooks:
            handle.remove()
    return calls


def joined(results: list[Tensor]) -> Tensor:
    """The results of consecutive chunks as one tensor: [B, T, ...] along T."""
    return results[0] if len(results) == 1 else torch.cat(results, dim=1)


def apply_widened(submodule: nn.Module, calls: list[Call]) -> Tensor:
    """The float64 copy of a submodule applied to the recorded arguments."""
    double = copy.deepcopy(submodule).double()
    widen = lambda a: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a
    with torch.no_grad():
        return joined([double(*(widen(a) for a in call.args)) for call in calls])


def record_module(
    writer: CaseWriter,
    module: nn.Module,
    taps: Mapping[str, str],
    run: Callable[[nn.Module], None],
    injected: bool = True,
) -> CaseWriter:
    """Adds the outputs of a module or model case.

    `taps`: submodule path → name of the output. `run`: feeds the module; it must take a float64 module, too.
    `injected`: whether the taps are complete, so that each can be judged on the golden results of those before it.
    """
    reference = record_calls(module, taps, run)
    truth = record_calls(copy.deepcopy(module).double(), taps, run)
    for path, name in taps.items():
        writer.output(
            name,
            joined([call.result for call in reference[path]]),
            truth=joined([call.result for call in truth[path]]),
            injected=apply_widened(module.get_submodule(path), reference[path]) if injected else None,
        )
    return writer
