"""Cases of `embedding`: y[b, t] = token.weight[tokens[b, t]] + position.weight[past + t]."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ..recipe import DTYPES, new_case, record_op
from ..writer import CaseWriter


@dataclasses.dataclass(frozen=True)
class Shape:
    """B, T, C, V, P of a case, and how many positions are already cached."""

    batch: int
    time: int
    channels: int
    vocab: int
    context: int
    past: int = 0


POSITIONED = {
    "odd": Shape(batch=2, time=9, channels=33, vocab=61, context=21),
    "full_context": Shape(batch=3, time=40, channels=13, vocab=107, context=40),
    "past": Shape(batch=3, time=7, channels=33, vocab=65, context=29, past=11),
    "last_position": Shape(batch=17, time=1, channels=35, vocab=107, context=24, past=23),
    "wide": Shape(batch=2, time=3, channels=1031, vocab=11, context=4, past=1),
}
LOOKUP = Shape(batch=3, time=11, channels=34, vocab=65, context=0)


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, shape in POSITIONED.items():
            yield positioned(name, dtype, shape)
        yield lookup(dtype)


def positioned(name: str, dtype: str, shape: Shape) -> CaseWriter:
    writer, draw = new_case("embedding", name, dtype, {"past": shape.past})
    tokens = draw.tokens(shape.vocab, shape.batch, shape.time)
    parameters = {
        "token.weight": draw.activations(shape.vocab, shape.channels),
        "position.weight": draw.activations(shape.context, shape.channels),
    }

    def compute(t: dict[str, Tensor]) -> Tensor:
        rows = t["position.weight"][shape.past : shape.past + shape.time]
        return t["token.weight"][t["tokens"]] + rows

    return record_op(writer, {"tokens": tokens}, parameters, compute)


def lookup(dtype: str) -> CaseWriter:
    """Without positions nothing is computed: to the bit, negative zero and denormals included."""
    writer, draw = new_case("embedding", "lookup", dtype, {"past": 0})
    tokens = draw.tokens(LOOKUP.vocab, LOOKUP.batch, LOOKUP.time)
    table = draw.activations(LOOKUP.vocab, LOOKUP.channels)
    table[:, 3] = -0.0
    table[:, 7] = 1e-40 * torch.arange(1, LOOKUP.vocab + 1)
    compute = lambda t: t["token.weight"][t["tokens"]]
    return record_op(writer, {"tokens": tokens}, {"token.weight": table}, compute, exact=True)
