"""The committed numbers have teeth: no value that makes a mistake invisible, no shape in which two axes look alike."""

import math

import numpy as np
import pytest

from golden_reading import Case, case_names, load

# Made for one extreme of their own, and so without the usual spread.
SPECIAL = ("tiny_variance", "large_mean", "large_scores", "denormal", "negative_tail", "small")
WITH_ACTIVATIONS = ("layernorm", "linear", "gelu", "add", "attention", "self_attention", "mlp", "block")


def parameters(case: Case) -> dict[str, np.ndarray]:
    return {name: case.tensors[name] for name, entry in case.manifest["tensors"].items() if entry["role"] == "parameter"}


def names_with_parameters() -> list[str]:
    return [name for name in case_names() if parameters(load(name))]


@pytest.mark.parametrize("name", names_with_parameters())
def test_gains_are_not_one_and_biases_not_zero(name: str) -> None:
    """With PyTorch's initial values a missing bias or gain changes nothing."""
    for parameter, values in parameters(load(name)).items():
        if parameter.endswith("bias"):
            assert np.abs(values).min() > 0.04, parameter
        elif values.ndim == 1:
            assert np.abs(values - 1).min() > 0.04, parameter
        assert len(np.unique(values)) > min(values.size, 200) / 2, f"{parameter} repeats itself"


@pytest.mark.parametrize("name", names_with_parameters())
def test_weights_are_asymmetric_and_scaled_to_their_input(name: str) -> None:
    for parameter, values in parameters(load(name)).items():
        if values.ndim != 2 or "token" in parameter or "position" in parameter:
            continue
        assert 0.8 < values.std() * math.sqrt(values.shape[1]) < 1.25, parameter
        if values.shape[0] == values.shape[1]:
            assert np.abs(values - values.T).max() > values.std()


@pytest.mark.parametrize(
    "name", [name for op in WITH_ACTIVATIONS for name in case_names(op) if not any(word in name for word in SPECIAL)]
)
def test_activations_reach_six(name: str) -> None:
    """Below that, tanh and erf GELU differ by 1e-9 and every exponent is harmless."""
    case = load(name)
    inputs = [case.tensors[tensor] for tensor, entry in case.manifest["tensors"].items() if entry["role"] == "input"]
    assert all(np.abs(x).max() >= 6 for x in inputs)


def dimensions(case: Case) -> dict[str, int]:
    """The dimensions of a case by letter; those of size 1 are the ones a case is made for."""
    t, config = case.tensors, case.config
    heads = config.get("heads", config.get("num_attention_heads"))
    match case.manifest["op"]:
        case "attention":
            sizes = dict(zip("BTC", t["q"].shape)) | {"S": t["k"].shape[1]} if config["past"] else dict(zip("BTC", t["q"].shape))
        case "embedding":
            sizes = dict(zip("BT", t["tokens"].shape)) | dict(zip("VC", t["token.weight"].shape))
        case "append":
            sizes = dict(zip("BHPD", t["cache"].shape)) | ({"T": t["x"].shape[1]} if config["past"] else {})
        case "linear":
            sizes = {"rows": math.prod(t["x"].shape[:-1]), "I": t["weight"].shape[1]}
            sizes |= {"O": t["weight"].shape[0]} if "square" not in case.name else {}
        case "self_attention":
            sizes = dict(zip("BTC", t["x"].shape))
        case "block":
            sizes = dict(zip("BTC", t["x"].shape)) | {"F": t["mlp.up.weight"].shape[0]}
        case "gpt":
            sizes = dict(zip("BT", t["tokens"].shape)) | {"V": config["vocab_size"], "C": config["hidden_size"]}
            sizes |= {"F": config["intermediate_size"]}
        case op:
            raise ValueError(op)
    return sizes | ({"H": heads, "D": sizes["C"] // heads} if heads and "C" in sizes and heads > 1 else {})


@pytest.mark.parametrize(
    "name",
    [
        name
        for op in ("attention", "embedding", "append", "linear", "self_attention", "block", "gpt")
        for name in case_names(op)
        if "trained" not in name
    ],
)
def test_dimensions_differ(name: str) -> None:
    """Two swapped dimensions of one size are no mistake that a shape or a value could show."""
    sizes = [size for size in dimensions(load(name)).values() if size > 1]
    assert len(set(sizes)) == len(sizes), dimensions(load(name))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("op", ["layernorm", "linear", "embedding", "add"])
def test_sizes_on_both_sides_of_a_block_of_threads(op: str, dtype: str) -> None:
    """Under one warp, over the largest block, and odd: where a kernel's loops and guards begin to matter."""
    sizes = {load(name).tensors["y"].shape[-1] for name in case_names(op, dtype)}
    sizes |= {load(name).tensors["x"].shape[-1] for name in case_names(op, dtype) if "x" in load(name).tensors}
    assert max(sizes) > 1024 and any(size % 2 for size in sizes)
    assert min(sizes) < 40 and (op in ("add", "embedding") or min(sizes) < 32)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("op", ["attention", "self_attention", "block", "embedding"])
def test_sequences_of_one_and_of_odd_length_in_batches(op: str, dtype: str) -> None:
    shapes = [load(name).tensors["y"].shape for name in case_names(op, dtype)]
    assert any(time == 1 and batch > 1 for batch, time, _ in shapes)
    assert any(time % 2 == 1 and time > 1 and batch > 1 for batch, time, _ in shapes)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_models_fill_their_context_and_decode_behind_it(dtype: str) -> None:
    cases = [load(name) for name in case_names("gpt", dtype) if "trained" not in name and "drawn" not in name]
    assert any(sum(case.config["chunks"]) == case.config["max_position_embeddings"] for case in cases)
    assert any(1 in case.config["chunks"][1:] and max(case.config["chunks"][1:]) > 1 for case in cases)
    assert all(case.tensors["tokens"].shape[0] > 1 for case in cases)


@pytest.mark.parametrize("name", case_names("generate"))
def test_generation_leaves_the_context_and_its_decisions_are_clear(name: str) -> None:
    """A case full of near ties would let a wrong path pass as a close call."""
    case = load(name)
    assert case.tensors["tokens"].shape[1] + case.config["max_new_tokens"] > 256
    assert case.tensors["generated"].shape == case.tensors["margins"].shape
    assert case.tensors["margins"].min() > 1e-3


@pytest.mark.parametrize("name", case_names("append"))
def test_unwritten_cache_is_poisoned(name: str) -> None:
    """A row that is read before it is written shows in any result."""
    case = load(name)
    assert (np.abs(case.tensors["cache"][:, :, case.config["past"] :]) > 9e29).all()
    assert np.signbit(case.tensors["y"][case.tensors["y"] == 0]).all(), "negative zero is kept"


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_greedy_has_ties(dtype: str) -> None:
    logits = load(f"sample/greedy_ties_{dtype}").tensors["logits"]
    assert ((logits == logits.max(axis=-1, keepdims=True)).sum(axis=-1) > 1).any()
