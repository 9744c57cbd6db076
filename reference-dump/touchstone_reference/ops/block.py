"""Cases of `block`: x + attention(ln1(x)), then + mlp(ln2(·)), with every intermediate."""

from collections.abc import Iterator

from ..model import Block
from ..recipe import DTYPES, fill, new_case, rounded
from ..taps import BLOCK_INNER, record_module
from ..writer import CaseWriter

# The block's result is its last submodule's; it is stored as `y` alone.
TAPS = {path: path for path in BLOCK_INNER} | {"add2": "y"}
# name: (B, T, C, H, F, eps); large eps, so that a constant in place of the config's shows in a whole block.
SHAPES = {
    "odd": (2, 9, 30, 5, 73, 1e-2),
    "one_token": (17, 1, 21, 3, 50, 2e-2),
    # Rows of whole vectors, in more than one tile of a few rows, and tiles that are not full.
    "whole_vectors": (3, 7, 72, 9, 136, 1e-2),
}


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, (batch, time, channels, heads, width, eps) in SHAPES.items():
            writer, draw = new_case("block", name, dtype, {"heads": heads, "eps": eps})
            module = fill(Block(channels, heads, width, eps), draw, dtype)
            x = rounded({"x": draw.activations(batch, time, channels)}, dtype)["x"]
            writer.input("x", x)
            for parameter, tensor in module.state_dict().items():
                writer.parameter(parameter, tensor)
            run = lambda m: m(x.to(m.ln1.weight.dtype))
            yield record_module(writer, module, TAPS, run)
