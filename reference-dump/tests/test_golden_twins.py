"""Wrong kernels, planted one at a time: each is rejected by the cases made against it.

The twins are the mistakes that real ports make. If one of these tests fails, that mistake passes the golden cases.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest

import golden_other_way as right
from golden_other_way import Array, Runtime, compute, round_to_bf16
from golden_reading import load
from touchstone_reference.gate import Verdict, judge


def verdicts(name: str, runtime: Runtime) -> dict[str, Verdict]:
    """The injected check of every output of a case."""
    case = load(name)
    ours = compute(case, runtime)
    return {
        output: judge(ours[output], case.tensors[output], case.injected.get(output, case.truths[output]), case.dtype)
        for output in case.outputs()
    }


def guilty(name: str, runtime: Runtime) -> str | None:
    """The first output that fails, in the order of computation."""
    return next((output for output, verdict in verdicts(name, runtime).items() if not verdict.passed), None)


def tanh_gelu(x: Array) -> Array:
    return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))).astype(x.dtype)


def transposed_when_square(x: Array, weight: Array, bias: Array | None) -> Array:
    return right.linear(x, weight.T if weight.shape[0] == weight.shape[1] else weight, bias)


def swapped_q_and_k(q: Array, k: Array, v: Array, heads: int) -> Array:
    return right.attention(k, q, v, heads)


def sees_one_ahead(q: Array, k: Array, v: Array, heads: int) -> Array:
    return right.attention(q, k, v, heads, mask=lambda t, s: np.triu(np.ones((t, s), bool), s - t + 2))


def sees_not_itself(q: Array, k: Array, v: Array, heads: int) -> Array:
    """Position 0 must see something, or the result is NaN and any check would notice."""

    def mask(time: int, seen: int) -> Array:
        hidden = np.triu(np.ones((time, seen), bool), seen - time)
        hidden[:, 0] = False
        return hidden

    return right.attention(q, k, v, heads, mask=mask)


def mask_forgets_past(q: Array, k: Array, v: Array, heads: int) -> Array:
    """The causal mask of a prefill, aligned with the first key and not with the last."""
    return right.attention(q, k, v, heads, mask=lambda t, s: np.triu(np.ones((t, s), bool), 1))


def scale_slightly_off(q: Array, k: Array, v: Array, heads: int) -> Array:
    return right.attention(q, k, v, heads, scale_error=1e-4)


def no_max_subtraction(q: Array, k: Array, v: Array, heads: int) -> Array:
    return right.attention(q, k, v, heads, shift=False)


def heads_and_time_swapped(q: Array, k: Array, v: Array, heads: int) -> Array:
    """[B, T, C] taken for [B, H, T, D] as it lies in memory."""
    as_it_lies = lambda x: x.reshape(x.shape[0], heads, x.shape[1], -1).swapaxes(1, 2).reshape(x.shape)
    return right.attention(as_it_lies(q), as_it_lies(k), as_it_lies(v), heads)


def not_merged_back(q: Array, k: Array, v: Array, heads: int) -> Array:
    """The result left as [B, H, T, D]."""
    y = right.attention(q, k, v, heads)
    return right.split_heads(y, heads).reshape(y.shape)


def head_stride_wrong(q: Array, k: Array, v: Array, heads: int) -> Array:
    """Channel c belongs to head c mod H in place of c div D."""
    order = np.arange(q.shape[-1]).reshape(-1, heads).T.reshape(-1)
    return right.attention(q[..., order], k[..., order], v[..., order], heads)[..., np.argsort(order)]


def eps_outside_root(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True))
    return centred / (deviation + np.float32(eps)) * weight + bias


def eps_constant(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    return right.layernorm(x, weight, bias, 1e-5)


def unbiased_variance(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    n = x.shape[-1]
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).sum(-1, keepdims=True) / np.float32(n - 1)
    return centred / np.sqrt(variance + np.float32(eps)) * weight + bias


def variance_of_squares(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """E[x²] - E[x]²."""
    mean = x.mean(-1, keepdims=True)
    variance = np.maximum(np.square(x).mean(-1, keepdims=True) - np.square(mean), 0)
    return (x - mean) / np.sqrt(variance + np.float32(eps)) * weight + bias


def statistics_in_bf16(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    mean = round_to_bf16(x.mean(-1, keepdims=True))
    variance = round_to_bf16(np.square(x - mean).mean(-1, keepdims=True))
    return (x - mean) / np.sqrt(variance + np.float32(eps)) * weight + bias


def missing_bias(x: Array, weight: Array, bias: Array | None) -> Array:
    return right.linear(x, weight, None)


def one_bias_missing(x: Array, weight: Array, bias: Array | None) -> Array:
    if bias is not None:
        bias = bias.copy()
        bias[-1] = 0
    return right.linear(x, weight, bias)


def last_k_dropped(x: Array, weight: Array, bias: Array | None) -> Array:
    return right.linear(x[..., :-1], weight[:, :-1], bias)


def inputs_in_tf32(x: Array, weight: Array, bias: Array | None) -> Array:
    tf32 = lambda a: (a.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return right.linear(tf32(np.ascontiguousarray(x)), tf32(weight), bias)


def inputs_in_bf16(x: Array, weight: Array, bias: Array | None) -> Array:
    return right.linear(round_to_bf16(x), round_to_bf16(weight), bias)


def accumulator_in_bf16(x: Array, weight: Array, bias: Array | None) -> Array:
    """The sum goes through bf16 between tiles of 8."""
    total = np.float32(0)
    for k in range(0, x.shape[-1], 8):
        total = round_to_bf16(total + right.linear(x[..., k : k + 8], weight[:, k : k + 8], None))
    return total if bias is None else total + bias


def result_in_bf16(a: Array, b: Array) -> Array:
    return round_to_bf16(a + b)


def flushed_sum(a: Array, b: Array) -> Array:
    flush = lambda x: np.where(np.abs(x) < 2.0**-126, np.float32(0), x)
    return flush(flush(a) + flush(b))


def flushed_gelu(x: Array) -> Array:
    return np.where(np.abs(x) < 2.0**-126, np.float32(0), right.gelu(x))


def ignores_past(tokens: Array, token: Array, position: Array, past: int) -> Array:
    return right.embedding(tokens, token, position, 0)


def position_one_early(tokens: Array, token: Array, position: Array, past: int) -> Array:
    return right.embedding(tokens, token, position, max(past - 1, 0))


def position_by_batch(tokens: Array, token: Array, position: Array, past: int) -> Array:
    """Positions run over the flat [B · T]."""
    flat = (past + np.arange(tokens.size)) % len(position)
    return token[tokens] + position[flat].reshape(*tokens.shape, -1)


def stale_last_row(cached: Array, new: Array) -> Array:
    """The last row of each append arrives late: the attention still sees the poison there, or what lay there before."""
    both = right.append_cache(cached, new)
    both[:, -1] = cached[:, -1]
    return both


def appended_one_early(cached: Array, new: Array) -> Array:
    """Over the last cached row."""
    both = right.append_cache(cached, new)
    return np.concatenate([both[:, : cached.shape[1] - 1], new, new[:, -1:]], axis=1)


TWINS = [
    ("gelu", tanh_gelu, ["gelu/sweep_f32", "gelu/small_f32", "gelu/negative_tail_bf16", "mlp/odd_f32", "block/odd_f32"]),
    ("gelu", flushed_gelu, ["gelu/denormal_f32"]),
    ("linear", transposed_when_square, ["linear/square_f32", "linear/square_bf16", "self_attention/odd_f32", "self_attention/odd_bf16"]),
    ("linear", missing_bias, ["linear/odd_f32", "linear/one_row_bf16", "mlp/odd_bf16", "self_attention/one_token_bf16"]),
    ("linear", one_bias_missing, ["linear/odd_f32", "linear/many_rows_bf16", "block/odd_f32"]),
    ("linear", last_k_dropped, ["linear/long_sum_f32", "linear/long_sum_bf16", "linear/one_row_f32", "gpt/chunked_f32"]),
    ("linear", inputs_in_tf32, ["linear/odd_f32", "linear/long_sum_f32", "gpt/chunked_f32", "gpt/trained_full_context_f32"]),
    ("linear", inputs_in_bf16, ["linear/odd_f32", "linear/one_row_no_bias_f32"]),
    ("linear", accumulator_in_bf16, ["linear/long_sum_f32", "linear/long_sum_bf16"]),
    ("attention", swapped_q_and_k, ["attention/prefill_odd_f32", "self_attention/odd_f32", "self_attention/odd_bf16"]),
    ("attention", sees_one_ahead, ["attention/prefill_odd_f32", "attention/chunk_after_past_f32", "gpt/chunked_bf16"]),
    ("attention", sees_not_itself, ["attention/prefill_odd_bf16", "attention/chunk_after_past_f32", "attention/decode_f32"]),
    ("attention", mask_forgets_past, ["attention/decode_f32", "attention/decode_long_bf16", "attention/chunk_after_past_f32"]),
    ("attention", scale_slightly_off, ["attention/prefill_odd_f32", "attention/full_context_f32", "attention/decode_f32"]),
    ("attention", no_max_subtraction, ["attention/large_scores_f32", "attention/large_scores_bf16"]),
    ("attention", heads_and_time_swapped, ["attention/prefill_odd_f32", "self_attention/odd_f32", "gpt/prefill_full_context_bf16"]),
    ("attention", not_merged_back, ["attention/prefill_odd_f32", "self_attention/odd_bf16"]),
    ("attention", head_stride_wrong, ["attention/prefill_odd_f32", "attention/prefill_many_heads_f32", "attention/decode_bf16"]),
    ("layernorm", eps_outside_root, ["layernorm/tiny_variance_f32", "layernorm/tiny_variance_bf16", "block/odd_f32"]),
    ("layernorm", eps_constant, ["layernorm/narrow_f32", "layernorm/narrow_bf16", "layernorm/many_rows_f32", "block/odd_f32", "gpt/chunked_f32"]),
    ("layernorm", unbiased_variance, ["layernorm/odd_f32", "layernorm/odd_bf16", "layernorm/wide_f32", "gpt/chunked_bf16"]),
    ("layernorm", variance_of_squares, ["layernorm/large_mean_f32"]),
    ("layernorm", statistics_in_bf16, ["layernorm/odd_f32", "layernorm/large_mean_bf16"]),
    ("add", result_in_bf16, ["add/odd_f32", "add/cancelling_f32", "block/odd_f32"]),
    ("add", flushed_sum, ["add/denormal_f32"]),
    ("embedding", ignores_past, ["embedding/past_f32", "embedding/last_position_bf16", "gpt/chunked_f32"]),
    ("embedding", position_one_early, ["embedding/past_bf16", "gpt/chunked_bf16"]),
    ("embedding", position_by_batch, ["embedding/odd_f32", "gpt/chunked_f32"]),
    ("append_cache", stale_last_row, ["gpt/chunked_f32", "gpt/chunked_bf16"]),
    ("append_cache", appended_one_early, ["gpt/chunked_f32", "gpt/chunked_bf16"]),
]
PLANTED = [(op, twin, name) for op, twin, names in TWINS for name in names]


@pytest.mark.parametrize(("op", "twin", "name"), PLANTED, ids=[f"{twin.__name__}-{name}" for _, twin, name in PLANTED])
def test_the_twin_is_rejected(op: str, twin: object, name: str) -> None:
    assert guilty(name, dataclasses.replace(Runtime(), **{op: twin})) is not None


@pytest.mark.parametrize(
    ("twin", "first"),
    [
        (Runtime(gelu=tanh_gelu), "blocks.0.mlp.gelu"),
        (Runtime(attention=sees_one_ahead), "blocks.0.attention.core"),
        (Runtime(layernorm=eps_outside_root), "blocks.0.ln1"),
        (Runtime(append_cache=stale_last_row), "blocks.0.attention.core"),
        (Runtime(add=result_in_bf16), "blocks.0.add1"),
    ],
)
def test_the_first_bad_tap_names_the_op(twin: Runtime, first: str) -> None:
    """The order of the taps in `case.json` is the order of computation: the first failing one is the guilty one."""
    assert guilty("gpt/chunked_f32", twin) == first


@pytest.mark.parametrize("name", ["gpt/prefill_full_context_f32", "gpt/chunked_f32"])
def test_one_bad_layer_is_found_alone(name: str) -> None:
    """With golden values injected, a fault in one call of one op fails exactly one tap."""
    calls = itertools.count()
    second_layer_only = lambda x: tanh_gelu(x) if next(calls) % 2 == 1 else right.gelu(x)
    failed = [tap for tap, verdict in verdicts(name, Runtime(gelu=second_layer_only)).items() if not verdict.passed]
    assert failed == ["blocks.1.mlp.gelu"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_fails(bad: float) -> None:
    """NaN compares false with everything: written the wrong way round, the gate would pass it."""
    case = load("linear/odd_f32")
    ours = case.tensors["y"].copy()
    ours[0, 1, 2] = bad
    assert not judge(ours, case.tensors["y"], case.truths["y"], "f32").passed
