"""Cases of `gpt`: tokens [B, T] → logits [B, T, V], whole or in chunks through the KV cache, with taps."""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..model import Config, Gpt
from ..recipe import DTYPES, fill, new_case
from ..taps import BLOCK_INNER, record_module
from ..trained import LARGE_MODEL, SMALL_MODEL, load_trained, trained_config, sample_tokens
from ..writer import CaseWriter

# Every dimension differs from every other; eps is large, so that a constant in its place shows.
SMALL = Config(
    vocab_size=41, max_position_embeddings=13, hidden_size=20, num_attention_heads=4, intermediate_size=51,
    num_hidden_layers=2, layer_norm_eps=1e-2,
)
# Whole vectors, and a head as wide as warpgroup products take: with BATCH chunks of 67 tokens, enough rows for every kernel of long passes.
WHOLE = Config(
    vocab_size=41, max_position_embeddings=83, hidden_size=64, num_attention_heads=1, intermediate_size=136,
    num_hidden_layers=1, layer_norm_eps=1e-2,
)
BATCH = 3
# name: chunks of T; 13 is the full context.
RANDOM = {
    "prefill_full_context": [13],
    "chunked": [1, 4, 1, 1, 2],
}


def cases() -> Iterator[CaseWriter]:
    for dtype in DTYPES:
        for name, chunks in RANDOM.items():
            yield random_model(name, dtype, chunks, SMALL, all_taps(SMALL.num_hidden_layers))
    yield random_model("long_chunks", "bf16", [9, 67], WHOLE, ["logits"])
    yield trained_model("trained_full_context", "f32", SMALL_MODEL, [256])
    yield trained_model("trained_decode", "f32", SMALL_MODEL, [61, *[1] * 6])
    yield trained_model("trained", "bf16", LARGE_MODEL, [131])
    yield trained_model("trained_window", "bf16", LARGE_MODEL, [1, 255])


def all_taps(layers: int) -> list[str]:
    """Every tap of a model, in the order of computation."""
    inner = [f"blocks.{i}.{path}" for i in range(layers) for path in (*BLOCK_INNER, "add2")]
    return ["embedding", *inner, "final_norm", "logits"]


def random_model(name: str, dtype: str, chunks: list[int], dims: Config, taps: list[str]) -> CaseWriter:
    """A model of random weights in chunks; where the taps are not all there are, they would be large."""
    config = dataclasses.asdict(dims) | {"dtype": {"f32": "float32", "bf16": "bfloat16"}[dtype]}
    writer, draw = new_case("gpt", name, dtype, config | {"chunks": chunks})
    model = fill(Gpt(dims), draw, dtype)
    tokens = draw.tokens(dims.vocab_size, BATCH, sum(chunks))
    writer.input("tokens", tokens)
    for parameter, tensor in model.state_dict().items():
        writer.parameter(parameter, tensor)
    whole = taps == all_taps(dims.num_hidden_layers)
    return record_module(writer, model, dict(zip(taps, taps)), feed(tokens, chunks), injected=whole)


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
