"""Cases of `add`: y = a + b, the residual addition."""

from collections.abc import Iterator

from torch import Tensor

from ..recipe import DTYPES, Draw, new_case, record_op
from ..writer import CaseWriter


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, shape in {"odd": (2, 9, 33), "one_row": (1, 1, 97), "wide": (3, 1031)}.items():
            writer, draw = new_case("add", name, dtype, {})
            yield record(writer, draw.activations(*shape), draw.activations(*shape))
        yield cancelling(dtype)
    yield denormal()


def cancelling(dtype: str) -> CaseWriter:
    """b is -a but for one part in a hundred: a rounding of either operand on its way shows a hundredfold."""
    writer, draw = new_case("add", "cancelling", dtype, {})
    a = draw.activations(17, 35)
    return record(writer, a, -a * (1 + 0.01 * draw.normal(17, 35)))


def denormal() -> CaseWriter:
    """Sums of denormals, which float32 holds exactly; flushing them to zero loses everything."""
    writer, draw = new_case("add", "denormal", "f32", {})
    return record(writer, draw_denormal(draw, 16, 7), draw_denormal(draw, 16, 7))


def draw_denormal(draw: Draw, *shape: int) -> Tensor:
    return draw.normal(*shape) * 1e-40


def record(writer: CaseWriter, a: Tensor, b: Tensor) -> CaseWriter:
    return record_op(writer, {"a": a, "b": b}, {}, lambda t: t["a"] + t["b"])
