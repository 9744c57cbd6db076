"""The ops once more, in NumPy and in another summation order than PyTorch's: a stand-in for a correct runtime.

What a runtime does, and no more: compute in the type of its inputs (float32, or float64 for the oracle) and round each op's
result once to the precision of the case. A wrong twin is this runtime with one op replaced (`dataclasses.replace`).
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from golden_reading import Case
from touchstone_reference.ops.gpt import drawn

MODELS = Path(__file__).resolve().parents[2] / "models"
# A kernel adds up in several partial sums, one a thread or a lane.
LANES = 8
Array = np.ndarray
erf = np.vectorize(math.erf, otypes=[np.float64])


def round_to_bf16(x: Array) -> Array:
    """Round to nearest even on the upper 16 bits; float32 in and out, finite values only."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def store(x: Array, dtype: str) -> Array:
    """The result of an op in the precision of the case; "f64" is the oracle's."""
    match dtype:
        case "bf16":
            return round_to_bf16(x)
        case "f32":
            return x.astype(np.float32)
        case "f64":
            return x


def widened(case: Case) -> Case:
    """The case as the float64 oracle sees it."""
    widen = lambda t: t.astype(np.float64) if t.dtype == np.float32 else t
    tensors = {name: widen(tensor) for name, tensor in case.tensors.items()}
    return dataclasses.replace(case, manifest=case.manifest | {"dtype": "f64"}, tensors=tensors)


def embedding(tokens: Array, token: Array, position: Array | None, past: int) -> Array:
    y = token[tokens]
    return y if position is None else y + position[past : past + tokens.shape[1]]


def layernorm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Two passes over the row: the mean first, then the centred sum of squares."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred * (1 / np.sqrt(variance + x.dtype.type(eps))) * weight + bias


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Partial sums over every eighth k, added pairwise, then the bias."""
    sums = [x[..., lane::LANES] @ weight[:, lane::LANES].T for lane in range(LANES)]
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums[::2], sums[1::2])]
    return sums[0] if bias is None else sums[0] + bias


def gelu(x: Array) -> Array:
    half = x / 2
    return half + half * erf(x / math.sqrt(2)).astype(x.dtype)


def add(a: Array, b: Array) -> Array:
    return a + b


def split_heads(x: Array, heads: int) -> Array:
    """[B, T, C] → [B, H, T, D]."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def merge_heads(x: Array) -> Array:
    """[B, H, T, D] → [B, T, C]."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def causal_mask(time: int, seen: int) -> Array:
    """[T, S], true where query t must not look: beyond position S - T + t."""
    return np.triu(np.ones((time, seen), dtype=bool), seen - time + 1)


def attention(
    q: Array, k: Array, v: Array, heads: int,
    mask: Callable[[int, int], Array] = causal_mask, scale_error: float = 0.0, shift: bool = True,
) -> Array:
    """The scale goes to q, the division by the sum comes last; as a flash kernel does it. Options make wrong twins."""
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    scale = q.dtype.type((1 + scale_error) / math.sqrt(q.shape[-1]))
    scores = np.where(mask(q.shape[2], k.shape[2]), q.dtype.type(-np.inf), (q * scale) @ k.swapaxes(-1, -2))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True) if shift else scores)
    return merge_heads((weights @ v) / weights.sum(axis=-1, keepdims=True))


def append_cache(cached: Array, new: Array) -> Array:
    """Rows [B, past, C] and [B, T, C] → all keys (or values) that the next attention sees."""
    return np.concatenate([cached, new], axis=1)


@dataclasses.dataclass(frozen=True)
class Runtime:
    """The ops of a runtime, each to be replaced by a wrong one."""

    embedding: Callable = embedding
    layernorm: Callable = layernorm
    linear: Callable = linear
    gelu: Callable = gelu
    add: Callable = add
    attention: Callable = attention
    append_cache: Callable = append_cache


class Run:
    """One run of a case: every op's result goes through `tap`, which rounds, records, and may inject the golden value."""

    def __init__(self, case: Case, runtime: Runtime, inject: bool) -> None:
        self.case, self.ops, self.inject = case, runtime, inject
        self.recorded: dict[str, list[Array]] = {}
        self.parameters = case.tensors
        self.start = 0  # the position of the current chunk

    def outputs(self) -> dict[str, Array]:
        return {name: np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0] for name, parts in self.recorded.items()}

    def tap(self, name: str, value: Array) -> Array:
        value = store(value, self.case.dtype)
        self.recorded.setdefault(name, []).append(value)
        if not self.inject or name not in self.case.injected:
            return value
        golden = self.case.tensors[name]
        return golden[:, self.start : self.start + value.shape[1]] if "chunks" in self.case.config else golden

    def linear(self, x: Array, name: str) -> Array:
        p = self.parameters
        return self.ops.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def layernorm(self, x: Array, name: str, eps: float) -> Array:
        p = self.parameters
        return self.ops.layernorm(x, p[f"{name}.weight"], p[f"{name}.bias"], eps)

    def self_attention(self, x: Array, heads: int, prefix: str, result: str, cache: dict | None = None) -> Array:
        q, k, v = (self.tap(f"{prefix}{part}", self.linear(x, f"{prefix}{part}")) for part in "qkv")
        if cache is not None:
            for part, new in (("k", k), ("v", v)):
                key = f"{prefix}{part}"
                cache[key] = self.ops.append_cache(cache[key], new) if key in cache else new
            k, v = cache[f"{prefix}k"], cache[f"{prefix}v"]
        core = self.tap(f"{prefix}core", self.ops.attention(q, k, v, heads))
        return self.tap(result, self.linear(core, f"{prefix}out"))

    def mlp(self, x: Array, prefix: str, result: str) -> Array:
        up = self.tap(f"{prefix}up", self.linear(x, f"{prefix}up"))
        return self.tap(result, self.linear(self.tap(f"{prefix}gelu", self.ops.gelu(up)), f"{prefix}down"))

    def block(self, x: Array, heads: int, eps: float, prefix: str, result: str, cache: dict | None = None) -> Array:
        normed = self.tap(f"{prefix}ln1", self.layernorm(x, f"{prefix}ln1", eps))
        attended = self.self_attention(normed, heads, f"{prefix}attention.", f"{prefix}attention.out", cache)
        x = self.tap(f"{prefix}add1", self.ops.add(x, attended))
        normed = self.tap(f"{prefix}ln2", self.layernorm(x, f"{prefix}ln2", eps))
        return self.tap(result, self.ops.add(x, self.mlp(normed, f"{prefix}mlp.", f"{prefix}mlp.down")))

    def gpt(self) -> None:
        tokens, config = self.case.tensors["tokens"], dict(self.case.config)
        chunks = config.get("chunks", [tokens.shape[1]])
        if "model" in config:
            folder = MODELS / config["model"]
            config |= json.loads((folder / "config.json").read_text())
            self.parameters = load_weights(folder, self.case.dtype)
        elif "weights_seed" in config:
            self.parameters = drawn_weights(config, self.case.dtype)
        p, cache = self.parameters, {}
        for chunk in np.split(tokens, np.cumsum(chunks)[:-1], axis=1):
            table = p["embedding.token.weight"]
            x = self.tap("embedding", self.ops.embedding(chunk, table, p["embedding.position.weight"], self.start))
            for i in range(config["num_hidden_layers"]):
                prefix = f"blocks.{i}."
                x = self.block(x, config["num_attention_heads"], config["layer_norm_eps"], prefix, f"{prefix}add2", cache)
            x = self.tap("final_norm", self.layernorm(x, "final_norm", config["layer_norm_eps"]))
            self.tap("logits", self.ops.linear(x, table, None))
            self.start += chunk.shape[1]


def load_weights(folder: Path, dtype: str) -> dict[str, Array]:
    """A model's weights in float32 (NumPy has no bf16), or in float64 for the oracle."""
    weights = {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    return {name: w.astype(np.float64) for name, w in weights.items()} if dtype == "f64" else weights


def drawn_weights(config: dict, dtype: str) -> dict[str, Array]:
    """The weights of a seed, rounded as the config says."""
    c, f = config["hidden_size"], config["intermediate_size"]
    shapes = {"embedding.token.weight": (config["vocab_size"], c), "embedding.position.weight": (config["max_position_embeddings"], c)}
    norms = ["final_norm"]
    for i in range(config["num_hidden_layers"]):
        block = f"blocks.{i}."
        shapes |= {f"{block}attention.{part}.weight": (c, c) for part in ("q", "k", "v", "out")}
        shapes |= {f"{block}attention.out.bias": (c,), f"{block}mlp.down.bias": (c,), f"{block}mlp.up.bias": (f,)}
        shapes |= {f"{block}mlp.up.weight": (f, c), f"{block}mlp.down.weight": (c, f)}
        norms += [f"{block}ln1", f"{block}ln2"]
    shapes |= {f"{norm}.{part}": (c,) for norm in norms for part in ("weight", "bias")}
    rounded = "bf16" if config["dtype"] == "bfloat16" else "f32"
    weights = {name: store(drawn(config["weights_seed"], name, shape), rounded) for name, shape in shapes.items()}
    return {name: w.astype(np.float64) for name, w in weights.items()} if dtype == "f64" else weights


def compute(case: Case, runtime: Runtime = Runtime(), inject: bool = True) -> dict[str, Array]:
    """What a runtime answers to a case: its outputs by name."""
    run, t, config = Run(case, runtime, inject), case.tensors, case.config
    with np.errstate(all="ignore"):
        match case.manifest["op"]:
            case "embedding":
                y = runtime.embedding(t["tokens"], t["token.weight"], t.get("position.weight"), config["past"])
                run.tap("y", y)
            case "layernorm":
                run.tap("y", runtime.layernorm(t["x"], t["weight"], t["bias"], config["eps"]))
            case "linear":
                run.tap("y", runtime.linear(t["x"], t["weight"], t.get("bias")))
            case "gelu":
                run.tap("y", runtime.gelu(t["x"]))
            case "add":
                run.tap("y", runtime.add(t["a"], t["b"]))
            case "attention":
                run.tap("y", runtime.attention(t["q"], t["k"], t["v"], config["heads"]))
            case "self_attention":
                run.self_attention(t["x"], config["heads"], "", "y")
            case "mlp":
                run.mlp(t["x"], "", "y")
            case "block":
                run.block(t["x"], config["heads"], config["eps"], "", "y")
            case "gpt":
                run.gpt()
            case op:
                raise ValueError(f"no computation for {op}")
    return run.outputs()
