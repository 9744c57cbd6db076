"""Cases of `attention`: softmax(q kᵀ / sqrt(D)) v, causal; query t stands at position past + t."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ..model import CausalAttention
from ..recipe import DTYPES, Draw, new_case, record_op
from ..writer import CaseWriter


@dataclasses.dataclass(frozen=True)
class Shape:
    """B, H, D, T and the number of positions before the first query."""

    batch: int
    heads: int
    head_width: int
    time: int
    past: int = 0

    @property
    def channels(self) -> int:
        return self.heads * self.head_width


SHAPES = {
    "prefill_odd": Shape(batch=2, heads=3, head_width=32, time=17),
    "prefill_one_head": Shape(batch=2, heads=1, head_width=33, time=19),
    "prefill_many_heads": Shape(batch=3, heads=9, head_width=7, time=13),
    "full_context": Shape(batch=1, heads=2, head_width=7, time=256),
    # Several tiles of keys, and a last one that is not full: heads of one width of tensor cores, and of more than one.
    "prefill_long": Shape(batch=1, heads=1, head_width=64, time=71, past=230),
    "prefill_wide_heads": Shape(batch=1, heads=1, head_width=104, time=37, past=5),
    "one_token": Shape(batch=17, heads=5, head_width=7, time=1),
    "chunk_after_past": Shape(batch=2, heads=3, head_width=64, time=9, past=14),
    "decode": Shape(batch=16, heads=5, head_width=7, time=1, past=12),
    "decode_long": Shape(batch=2, heads=3, head_width=9, time=1, past=255),
}


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, shape in SHAPES.items():
            writer, draw = new_case("attention", name, dtype, {"heads": shape.heads, "past": shape.past})
            yield record(writer, draw, shape)
        yield large_scores(dtype)


def large_scores(dtype: str) -> CaseWriter:
    """Scores near +120 in half of the batch and near -120 in the other: exp alone overflows float32, or all of it underflows.

    Every q and k shares one direction, which shifts all scores of a row alike; what differs is moderate, so that the
    softmax stays well conditioned.
    """
    shape = Shape(batch=2, heads=3, head_width=16, time=21)
    writer, draw = new_case("attention", "large_scores", dtype, {"heads": shape.heads, "past": shape.past})
    shift = (120.0 / shape.head_width**0.5) ** 0.5  # each component of the shared direction
    sign = torch.tensor([1.0, -1.0]).reshape(2, 1, 1)
    size = (shape.batch, shape.time, shape.channels)
    q, k = shift * sign + 0.5 * draw.normal(*size), shift + 0.25 * draw.normal(*size)
    return record(writer, draw, shape, q, k)


def record(writer: CaseWriter, draw: Draw, s: Shape, q: Tensor | None = None, k: Tensor | None = None) -> CaseWriter:
    inputs = {
        "q": draw.activations(s.batch, s.time, s.channels) if q is None else q,
        "k": draw.activations(s.batch, s.past + s.time, s.channels) if k is None else k,
        "v": draw.activations(s.batch, s.past + s.time, s.channels),
    }
    core = CausalAttention(s.heads)
    return record_op(writer, inputs, {}, lambda t: core(t["q"], t["k"], t["v"]))
