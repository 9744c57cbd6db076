"""Cases of `layernorm`: y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension, biased variance."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..recipe import DTYPES, Draw, new_case, record_op
from ..writer import CaseWriter

# Every case has its own eps where that is visible, so that a constant in a kernel cannot stand for the config's.
PLAIN = {
    "odd": ((2, 9, 33), 1e-5),
    "narrow": ((3, 11, 13), 1e-2),
    "wide": ((7, 1031), 1e-5),
    "one_row": ((1, 1, 96), 1e-3),
    "many_rows": ((131, 35), 1e-4),
}


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, (shape, eps) in PLAIN.items():
            writer, draw = new_case("layernorm", name, dtype, {"eps": eps})
            # Scale and offset differ from row to row: a mean over the wrong axis shows.
            rows = [*shape[:-1], 1]
            x = draw.activations(*shape) * (0.5 + draw.uniform(*rows)) + draw.normal(*rows)
            yield record(writer, draw, x, eps)
        yield tiny_variance(dtype)
        yield constant_rows(dtype)
        yield large_mean(dtype)


def tiny_variance(dtype: str) -> CaseWriter:
    """Row variances from 1e-6 down to 1e-12, where eps decides the result and its place in the formula shows."""
    eps = 1e-5
    writer, draw = new_case("layernorm", "tiny_variance", dtype, {"eps": eps})
    scale = torch.logspace(-3, -6, 18).unsqueeze(1)
    return record(writer, draw, draw.normal(18, 65) * scale, eps)


def constant_rows(dtype: str) -> CaseWriter:
    """Every other row is constant: variance 0, the result is the bias.

    64 channels and short constants: their sum and mean are exact in any order, so that nothing but 0 is right.
    """
    eps = 1e-6
    writer, draw = new_case("layernorm", "constant_rows", dtype, {"eps": eps})
    x = draw.activations(20, 64)
    constants = torch.tensor([0.0, -0.0, 3.0, -7.5, 1.0, 96.0, -0.375, 1024.0, 2.0**-20, -6.0])
    x[::2] = constants.unsqueeze(1)
    return record(writer, draw, x, eps)


def large_mean(dtype: str) -> CaseWriter:
    """The mean is many standard deviations away from 0: E[x²] - E[x]² in place of the centred sum loses the variance."""
    eps = 1e-5
    mean, deviation = {"f32": (300.0, 0.25), "bf16": (24.0, 0.5)}[dtype]
    writer, draw = new_case("layernorm", "large_mean", dtype, {"eps": eps})
    means = mean * (1 + 0.5 * draw.uniform(37, 1)) * draw.normal(37, 1).sign()
    return record(writer, draw, means + deviation * draw.normal(37, 129), eps)


def record(writer: CaseWriter, draw: Draw, x: Tensor, eps: float) -> CaseWriter:
    channels = x.shape[-1]
    parameters = {"weight": draw.gain(channels), "bias": draw.bias(channels)}
    compute = lambda t: F.layer_norm(t["x"], (channels,), t["weight"], t["bias"], eps)
    return record_op(writer, {"x": x}, parameters, compute)
