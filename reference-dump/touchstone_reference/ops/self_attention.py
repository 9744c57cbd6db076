"""Cases of `self_attention`: q, k, v projections without bias, causal attention, output projection with one."""

from collections.abc import Iterator

from ..model import SelfAttention
from ..recipe import DTYPES, fill, new_case, rounded
from ..taps import record_module
from ..writer import CaseWriter

# The module's result is its last submodule's; it is stored as `y` alone.
TAPS = {"q": "q", "k": "k", "v": "v", "core": "core", "out": "y"}
# name: (B, T, C, H)
SHAPES = {
    "odd": (2, 11, 45, 5),
    "one_token": (3, 1, 28, 4),
    "long": (1, 47, 22, 2),
}


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, (batch, time, channels, heads) in SHAPES.items():
            writer, draw = new_case("self_attention", name, dtype, {"heads": heads})
            module = fill(SelfAttention(channels, heads), draw, dtype)
            x = rounded({"x": draw.activations(batch, time, channels)}, dtype)["x"]
            writer.input("x", x)
            for parameter, tensor in module.state_dict().items():
                writer.parameter(parameter, tensor)
            run = lambda m: m(x.to(m.q.weight.dtype))
            yield record_module(writer, module, TAPS, run)
