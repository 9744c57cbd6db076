"""Records every call of every submodule as a tree: who called whom, with what, and what came back.

Hooks sit on all modules, so nothing about the module needs to be known. What is not a module call (a function, an
operator, a fused path that reads a submodule's weights itself) is invisible to them.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass
class Call:
    """One call: `args` and `kwargs` as they were before it, `result` as it came back, tensors copied."""

    path: str
    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    result: Any = None
    children: list["Call"] = dataclasses.field(default_factory=list)

    def walk(self) -> Iterator["Call"]:
        """This call and all below it, in the order in which they began."""
        yield self
        for child in self.children:
            yield from child.walk()


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in its tuples, lists and dicts replaced by `change(tensor)`; the rest as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a namedtuple takes its fields one by one
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, change) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    return value


def widened(value: Any) -> Any:
    """The same values with floating point in float64."""
    return map_tensors(value, lambda t: t.double() if t.is_floating_point() else t)


def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Call:
    """Runs `module(*args, **kwargs)` without gradients; paths are relative to `module`, whose own is ""."""
    snapshot = lambda value: map_tensors(value, lambda t: t.detach().clone())
    root: list[Call] = []
    open_calls: list[Call] = []

    def before(path: str) -> Callable:
        def hook(submodule: nn.Module, args: tuple, kwargs: dict) -> None:
            call = Call(path, submodule, snapshot(args), snapshot(kwargs))
            (open_calls[-1].children if open_calls else root).append(call)
            open_calls.append(call)
        return hook

    def after(_submodule: nn.Module, _args: tuple, _kwargs: dict, result: Any) -> None:
        open_calls.pop().result = snapshot(result)

    handles = []
    for path, submodule in module.named_modules():
        # Before the module's own hooks: a replay on the recorded arguments runs those again.
        handles.append(submodule.register_forward_pre_hook(before(path), prepend=True, with_kwargs=True))
        handles.append(submodule.register_forward_hook(after, with_kwargs=True))
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return root[0]
