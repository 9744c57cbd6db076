"""Cases of `gelu`: y = x/2 · (1 + erf(x / sqrt(2))), the exact form."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..recipe import DTYPES, new_case, record_op
from ..writer import CaseWriter

EXTREMES = (0.0, -0.0, 20.0, -20.0, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38, 1e-38, -1e-38, 6.0, -6.0, 0.5)


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        yield record("sweep", dtype, sweep(-8.0, 8.0, 65, 33))
        # Here the tanh form is off by percents of the value, so that even bf16 tells the two apart.
        yield record("negative_tail", dtype, sweep(-4.5, -2.0, 129, 17))
        # Near 0 and on both sides of 1, without larger values that would hide a small error.
        yield record("small", dtype, sweep(-0.3, 0.3, 33, 7))
        # Nothing here may become NaN, or infinite.
        yield record("extremes", dtype, torch.tensor(EXTREMES).unsqueeze(0))
    # Halves of denormals: flushed to zero they would be 100 % off.
    yield record("denormal", "f32", torch.arange(-30, 31).reshape(1, 61) * 2e-41)


def sweep(low: float, high: float, rows: int, channels: int) -> Tensor:
    """Evenly spaced values [rows, channels]; a channel holds one short range, which the gate so judges by itself."""
    return torch.linspace(low, high, rows * channels, dtype=torch.float64).float().reshape(channels, rows).T.contiguous()


def record(name: str, dtype: str, x: Tensor) -> CaseWriter:
    writer, _ = new_case("gelu", name, dtype, {})
    return record_op(writer, {"x": x}, {}, lambda t: F.gelu(t["x"]))
