"""Cases of `gpt`: tokens [B, T] → logits [B, T, V], whole or in chunks through the KV cache, with taps."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..model import Config, Gpt
from ..philox import philox4x32
from ..recipe import DTYPES, fill, new_case
from ..taps import BLOCK_INNER, record_module
from ..trained import LARGE_MODEL, SMALL_MODEL, load_trained, trained_config, sample_tokens
from ..writer import CaseWriter

# Every dimension differs from every other; eps is large, so that a constant in its place shows.
SMALL = Config(
    vocab_size=41, max_position_embeddings=13, hidden_size=20, num_attention_heads=4, intermediate_size=51,
    num_hidden_layers=2, layer_norm_eps=1e-2,
)
# Whole vectors, and a head as wide as warpgroup products take: with BATCH chunks of 67 tokens, enough rows for the kernels of long passes.
WHOLE = Config(
    vocab_size=41, max_position_embeddings=83, hidden_size=64, num_attention_heads=1, intermediate_size=136,
    num_hidden_layers=1, layer_norm_eps=1e-2,
)
# With BATCH passes of 600 tokens, most of a GPU has a product's widest tiles to make; and with 67, few tiles of long sums.
FILLING = dataclasses.replace(
    WHOLE, vocab_size=2, max_position_embeddings=613, hidden_size=384, num_attention_heads=6, intermediate_size=1608
)
SHARED = dataclasses.replace(WHOLE, vocab_size=5, hidden_size=512, num_attention_heads=8, intermediate_size=1088)
# The shapes of decoders: two of a cluster, and two that are spread over a whole GPU. Their weights are drawn by the reader.
DRAWN = {
    "drawn_128": (Config(
        vocab_size=107, max_position_embeddings=256, hidden_size=128, num_attention_heads=4, intermediate_size=512,
        num_hidden_layers=3,
    ), 41),
    "drawn_256": (Config(
        vocab_size=11, max_position_embeddings=768, hidden_size=256, num_attention_heads=4, intermediate_size=1024,
        num_hidden_layers=2,
    ), 300),
    "drawn_768": (Config(
        vocab_size=301, max_position_embeddings=48, hidden_size=768, num_attention_heads=12, intermediate_size=3072,
        num_hidden_layers=1,
    ), 10),
    "drawn_1600": (Config(
        vocab_size=57, max_position_embeddings=24, hidden_size=1600, num_attention_heads=25, intermediate_size=1632,
        num_hidden_layers=1,
    ), 9),
}  # fmt: skip
BATCH = 3
# name: chunks of T; 13 is the full context.
RANDOM = {
    "prefill_full_context": [13],
    "chunked": [1, 4, 1, 1, 2],
}


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, chunks in RANDOM.items():
            yield random_model(name, dtype, chunks)
        for name, (dims, time) in DRAWN.items():
            yield drawn_model(name, dtype, [time], dims, batch=1)
    yield drawn_model("long_chunks", "bf16", [9, 67], WHOLE, BATCH)
    yield drawn_model("long_pass", "bf16", [600], FILLING, BATCH)
    yield drawn_model("long_sums", "bf16", [67], SHARED, BATCH)
    yield trained_model("trained_full_context", "f32", SMALL_MODEL, [256])
    yield trained_model("trained_decode", "f32", SMALL_MODEL, [61, *[1] * 6])
    yield trained_model("trained", "f32", LARGE_MODEL, [67])
    yield trained_model("trained", "bf16", LARGE_MODEL, [131])
    yield trained_model("trained_window", "bf16", LARGE_MODEL, [1, 255])


def all_taps(layers: int) -> list[str]:
    """Every tap of a model, in the order of computation."""
    inner = [f"blocks.{i}.{path}" for i in range(layers) for path in (*BLOCK_INNER, "add2")]
    return ["embedding", *inner, "final_norm", "logits"]


def random_model(name: str, dtype: str, chunks: list[int]) -> CaseWriter:
    """A small model of random weights, which the case holds, in chunks."""
    writer, draw = new_case("gpt", name, dtype, fields(SMALL, dtype) | {"chunks": chunks})
    model = fill(Gpt(SMALL), draw, dtype)
    tokens = draw.tokens(SMALL.vocab_size, BATCH, sum(chunks))
    writer.input("tokens", tokens)
    for parameter, tensor in model.state_dict().items():
        writer.parameter(parameter, tensor)
    taps = all_taps(SMALL.num_hidden_layers)
    return record_module(writer, model, dict(zip(taps, taps)), feed(tokens, chunks), injected=True)


def drawn_model(name: str, dtype: str, chunks: list[int], dims: Config, batch: int) -> CaseWriter:
    """A larger model, whose weights follow from a seed by a rule that every reader can apply; its logits alone."""
    seed = 7
    writer, draw = new_case("gpt", name, dtype, fields(dims, dtype) | {"chunks": chunks, "weights_seed": seed})
    tokens = draw.tokens(dims.vocab_size, batch, sum(chunks))
    writer.input("tokens", tokens)
    model = Gpt(dims).to(DTYPES[dtype]).eval()
    for parameter, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(drawn(seed, parameter, tuple(tensor.shape))))
    return record_module(writer, model, {"logits": "logits"}, feed(tokens, chunks), injected=False)


def drawn(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The parameter `name` of the models of `seed`, float32: by Philox, with key (seed, FNV-1a of the name), block i for elements 2 i and 2 i + 1.

    An element is mean + std b, where b is the sum of the four 16-bit halves of two words, centred and scaled to variance 1.
    """
    one = np.float32(1)
    mean, std = (0, 0.02)
    if len(shape) == 2:
        mean, std = 0, one / np.sqrt(np.float32(shape[1]))
    elif name.endswith("weight"):
        mean, std = 1, 0.1
    hashed = 0x811C9DC5
    for byte in name.encode():
        hashed = (hashed ^ byte) * 0x01000193 & 0xFFFFFFFF
    count = int(np.prod(shape))
    blocks = -(-count // 2)
    counters = np.zeros((blocks, 4), dtype=np.uint32)
    counters[:, 0] = np.arange(blocks)
    pairs = philox4x32(counters, (seed, hashed)).reshape(-1, 2)
    sums = ((pairs & 0xFFFF) + (pairs >> 16)).sum(axis=1, dtype=np.uint32)
    bell = (sums.astype(np.float32) - np.float32(131_070)) * (np.sqrt(np.float32(3)) / np.float32(65_536))
    return (np.float32(mean) + np.float32(std) * bell)[:count].reshape(shape)


def fields(dims: Config, dtype: str) -> dict:
    """The dimensions as they stand in a `config.json`."""
    return dataclasses.asdict(dims) | {"dtype": {"f32": "float32", "bf16": "bfloat16"}[dtype]}


def trained_model(name: str, dtype: str, folder: str, chunks: list[int]) -> CaseWriter:
    """A committed model computing in `dtype` on running text; its logits alone, because taps would be large."""
    writer, _ = new_case("gpt", name, dtype, trained_config(folder) | {"chunks": chunks})
    tokens = sample_tokens(folder, sum(chunks))
    writer.input("tokens", tokens)
    model = load_trained(folder, DTYPES[dtype])
    return record_module(writer, model, {"logits": "logits"}, feed(tokens, chunks), injected=False)


def feed(tokens: Tensor, chunks: list[int]) -> Callable[[nn.Module], None]:
    """Runs a model over the chunks; with more than one, through its KV cache."""

    def run(model: nn.Module) -> None:
        caches = model.new_caches() if len(chunks) > 1 else None
        for chunk in torch.split(tokens, chunks, dim=1):
            model(chunk, caches)

    return run
