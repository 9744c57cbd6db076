"""Cases of `mlp`: down(gelu(up(x))), both linear layers with bias."""

from collections.abc import Iterator

from ..model import Mlp
from ..recipe import DTYPES, fill, new_case, rounded
from ..taps import record_module
from ..writer import CaseWriter

# The module's result is its last submodule's; it is stored as `y` alone.
TAPS = {"up": "up", "gelu": "gelu", "down": "y"}
# name: (leading dimensions of x, C, F)
SHAPES = {
    "odd": ((2, 9), 35, 119),
    "one_row": ((1, 1), 30, 93),
    "narrowing": ((19,), 66, 23),
}


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, (rows, channels, width) in SHAPES.items():
            writer, draw = new_case("mlp", name, dtype, {})
            module = fill(Mlp(channels, width), draw, dtype)
            x = rounded({"x": draw.activations(*rows, channels)}, dtype)["x"]
            writer.input("x", x)
            for parameter, tensor in module.state_dict().items():
                writer.parameter(parameter, tensor)
            run = lambda m: m(x.to(m.up.weight.dtype))
            yield record_module(writer, module, TAPS, run)
