"""Cases of `append`: x [B, T, C] goes to rows past..past+T of the cache [B, H, P, D]; every other row stays."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ..recipe import DTYPES, new_case, record_op
from ..writer import CaseWriter

# Rows not yet written hold this: whoever reads one by mistake cannot miss it.
POISON = 1e30


@dataclasses.dataclass(frozen=True)
class Shape:
    """B, H, D, P of the cache, T new positions after `past`."""

    batch: int
    heads: int
    head_width: int
    context: int
    past: int
    time: int


SHAPES = {
    "empty": Shape(batch=2, heads=3, head_width=7, context=20, past=0, time=5),
    "one": Shape(batch=3, heads=5, head_width=8, context=17, past=6, time=1),
    "to_the_end": Shape(batch=2, heads=3, head_width=32, context=20, past=13, time=7),
    "full_context": Shape(batch=3, heads=2, head_width=11, context=25, past=0, time=25),
}


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, shape in SHAPES.items():
            yield record(name, dtype, shape)


def record(name: str, dtype: str, s: Shape) -> CaseWriter:
    writer, draw = new_case("append", name, dtype, {"past": s.past})
    cache = torch.full((s.batch, s.heads, s.context, s.head_width), POISON)
    cache[:, :, : s.past] = draw.activations(s.batch, s.heads, s.past, s.head_width) if s.past else 0.0
    x = draw.activations(s.batch, s.time, s.heads * s.head_width)
    x[:, :, 1] = -0.0

    def compute(t: dict[str, Tensor]) -> Tensor:
        y = t["cache"].clone()
        y[:, :, s.past : s.past + s.time] = t["x"].unflatten(-1, (s.heads, s.head_width)).transpose(1, 2)
        return y

    return record_op(writer, {"cache": cache, "x": x}, {}, compute, exact=True)
