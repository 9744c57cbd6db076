"""Which module is which op of golden/README.md: the classes that `touchstone check` can recompute.

Exact types only: a subclass may compute anything. A call that does not fit its op (a LayerNorm over two dimensions, a
block with a cache) is not mapped, and is recorded under its class name.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from . import model
from .call_tree import Call


@dataclasses.dataclass
class Mapped:
    """A call in the words of the format: `output` is the name of what it returns, `rule` how that is compared.

    `last`, for ops with taps, is the submodule whose result is the module's own: that tap goes by the name `output`.
    """

    op: str
    inputs: dict[str, Tensor]
    parameters: dict[str, Tensor]
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    output: str = "y"
    rule: str | None = None
    last: str | None = None


def mapped(call: Call) -> Mapped | None:
    """The op that this call is, or nothing."""
    rule = KNOWN.get(type(call.module))
    if rule is None or not isinstance(call.result, Tensor):
        return None
    found = rule(call.module, arguments(call))
    if found is None:
        return None
    tensors = [*found.inputs.values(), *found.parameters.values(), call.result]
    # Under autocast, say, weights and results differ in dtype, and no op of the format does that.
    one_dtype = len({t.dtype for t in tensors if t.is_floating_point()}) == 1
    return found if one_dtype else None


def arguments(call: Call) -> dict[str, Any]:
    """The call's arguments by the names in the signature of `forward`; `*args` become `args`, a tuple."""
    try:
        return dict(inspect.signature(call.module.forward).bind(*call.args, **call.kwargs).arguments)
    except (TypeError, ValueError):  # a forward without a readable signature
        return {f"arg{i}": value for i, value in enumerate(call.args)} | call.kwargs


def _linear(module: nn.Linear, given: dict) -> Mapped:
    return Mapped("linear", {"x": given["input"]}, dict(module.named_parameters()))


def _layernorm(module: nn.LayerNorm, given: dict) -> Mapped | None:
    if len(module.normalized_shape) != 1 or module.weight is None or module.bias is None:
        return None
    return Mapped("layernorm", {"x": given["input"]}, dict(module.named_parameters()), {"eps": module.eps})


def _gelu(module: nn.GELU, given: dict) -> Mapped | None:
    return Mapped("gelu", {"x": given["input"]}, {}) if module.approximate == "none" else None


def _lookup(module: nn.Embedding, given: dict) -> Mapped | None:
    if module.max_norm is not None:  # it rewrites the table while it reads
        return None
    tokens = given["input"]
    # The op's tokens are [B, T]; a lookup knows no difference between rows, so other shapes become one row.
    tokens = tokens if tokens.dim() == 2 else tokens.reshape(1, -1)
    return Mapped("embedding", {"tokens": tokens}, {"token.weight": module.weight}, {"past": 0}, rule="exact")


def _embedding(module: model.Embedding, given: dict) -> Mapped:
    return Mapped("embedding", {"tokens": given["tokens"]}, dict(module.named_parameters()), {"past": given.get("past", 0)})


def _add(_module: model.Add, given: dict) -> Mapped | None:
    return Mapped("add", {"a": given["a"], "b": given["b"]}, {}) if given["a"].shape == given["b"].shape else None


def _attention(module: model.CausalAttention, given: dict) -> Mapped:
    past = given["k"].shape[1] - given["q"].shape[1]
    return Mapped("attention", {name: given[name] for name in "qkv"}, {}, {"heads": module.heads, "past": past})


def _tied_head(_module: model.TiedHead, given: dict) -> Mapped:
    return Mapped("linear", {"x": given["x"]}, {"weight": given["weight"]})


def _self_attention(module: model.SelfAttention, given: dict) -> Mapped | None:
    if given.get("cache") is not None:
        return None
    return Mapped("self_attention", {"x": given["x"]}, dict(module.named_parameters()), {"heads": module.core.heads}, last="out")


def _mlp(module: model.Mlp, given: dict) -> Mapped:
    return Mapped("mlp", {"x": given["x"]}, dict(module.named_parameters()), last="down")


def _block(module: model.Block, given: dict) -> Mapped | None:
    if given.get("cache") is not None:
        return None
    config = {"heads": module.attention.core.heads, "eps": module.ln1.eps}
    return Mapped("block", {"x": given["x"]}, dict(module.named_parameters()), config, last="add2")


def _gpt(module: model.Gpt, given: dict) -> Mapped | None:
    if given.get("caches") is not None:
        return None
    # The dtype it computes in, which a conversion may have changed since the config was read.
    config = dataclasses.asdict(module.config) | {"dtype": str(module.final_norm.weight.dtype).removeprefix("torch.")}
    return Mapped("gpt", {"tokens": given["tokens"]}, dict(module.named_parameters()), config, output="logits", last="logits")


KNOWN: dict[type[nn.Module], Callable[[Any, dict], Mapped | None]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layernorm,
    nn.GELU: _gelu,
    nn.Embedding: _lookup,
    model.Embedding: _embedding,
    model.Add: _add,
    model.CausalAttention: _attention,
    model.TiedHead: _tied_head,
    model.SelfAttention: _self_attention,
    model.Mlp: _mlp,
    model.Block: _block,
    model.Gpt: _gpt,
}
