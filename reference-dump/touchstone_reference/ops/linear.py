"""Cases of `linear`: y = x weightᵀ + bias, weight [O, I]."""

from collections.abc import Iterator

from torch.nn import functional as F

from ..recipe import DTYPES, new_case, record_op
from ..writer import CaseWriter

# name: (leading dimensions of x, I, O, bias)
SHAPES = {
    "odd": ((2, 9), 33, 65, True),
    "square": ((3, 7), 65, 65, True),
    "no_bias": ((2, 17), 45, 31, False),
    "long_sum": ((17,), 1031, 23, True),
    "many_outputs": ((9,), 7, 1031, True),
    "many_rows": ((3, 23), 67, 97, True),
    "whole_vectors": ((2, 20), 72, 56, True),
    "one_row": ((1, 1), 387, 66, True),
    "one_row_no_bias": ((1,), 129, 131, False),
    "one_output": ((131,), 64, 1, True),
}


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, (rows, in_features, out_features, with_bias) in SHAPES.items():
            writer, draw = new_case("linear", name, dtype, {})
            x = draw.activations(*rows, in_features)
            parameters = {"weight": draw.weight(out_features, in_features)}
            if with_bias:
                parameters["bias"] = draw.bias(out_features)
            compute = lambda t: F.linear(t["x"], t["weight"], t.get("bias"))
            yield record_op(writer, {"x": x}, parameters, compute)
