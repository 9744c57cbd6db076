"""The `sample` cases tell a wrong sampler from a right one, and a right one needs no more than float32."""

import math

import numpy as np
import pytest

from golden_reading import case_names, load
from touchstone_reference.philox import words

Array = np.ndarray


def sampler(
    logits: Array, config: dict, *, kind: type = np.float32, tie: str = "first", k_ties: bool = True, p_ties: bool = True,
    p_inclusive: bool = True, order: str = "k then p", gumbel_of: object = None, rows_seed: bool = True, rows_step: bool = True, by_step: bool = True,
    seed_mask: int = 2**64 - 1, k_off: int = 0,
) -> list[int]:
    """A sampler of its own for logits [B, V], sort based; every option but the defaults is a mistake to plant."""
    gumbel_of = gumbel_of or (lambda r: -np.log(-np.log((((r >> 8).astype(np.float64) + 0.5) * 2.0**-24))).astype(kind))
    tokens = []
    for b, row in enumerate(logits.astype(kind)):
        if config["temperature"] == 0:
            tokens.append(int(row.argmax() if tie == "first" else len(row) - 1 - row[::-1].argmax()))
            continue
        z = row / kind(config["temperature"])
        kept = np.ones(len(z), bool)
        steps = ("k", "p") if order == "k then p" else ("p", "k")
        for step in steps:
            ranks = np.argsort(-np.where(kept, z, -np.inf), kind="stable")
            if step == "k" and 0 < config["top_k"] < len(z):
                k = config["top_k"] + k_off
                kept &= z >= z[ranks[k - 1]] if k_ties else np.isin(np.arange(len(z)), ranks[:k])
            if step == "p" and config["top_p"] < 1:
                mass = np.where(kept, np.exp(z - z.max()), 0)[ranks]
                reached = (mass / mass.sum()).cumsum() >= config["top_p"]
                last = int(reached.argmax()) + (0 if p_inclusive else -1)
                kept &= z >= z[ranks[max(last, 0)]] if p_ties else np.isin(np.arange(len(z)), ranks[: last + 1])
        seed, step = config["seed"] + (b if rows_seed else 0), config["step"] + (b if rows_step else 0)
        r = words(seed & seed_mask, step if by_step else 0, 0, len(z))
        with np.errstate(divide="ignore"):
            tokens.append(int(np.where(kept, z + gumbel_of(r), -np.inf).argmax()))
    return tokens


def uniform_in_float32(r: Array) -> Array:
    """u as float32 from 24 bits and a half: the half is rounded away, and the largest u becomes 1."""
    u = ((r >> 8).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)
    return -np.log(-np.log(u))



@pytest.mark.parametrize("name", case_names("sample"))
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_correct_sampler_agrees(name: str, kind: type) -> None:
    """No decision is so close that float32 might go the other way."""
    case = load(name)
    assert sampler(case.tensors["logits"], case.config, kind=kind) == case.tensors["tokens"].tolist()


@pytest.mark.parametrize(
    ("mistake", "name"),
    [
        ({"tie": "last"}, "greedy_ties_f32"),
        ({"tie": "last"}, "greedy_wide_f32"),
        ({"k_ties": False}, "top_k_ties_f32"),
        ({"k_off": 1}, "top_k_f32"),
        ({"p_ties": False}, "top_p_ties_f32"),
        ({"p_inclusive": False}, "top_p_f32"),
        ({"order": "p then k"}, "top_k_top_p_f32"),
        ({"tie": "last"}, "wide_greedy_f32"),
        ({"k_off": 1}, "wide_top_k_f32"),
        ({"k_ties": False}, "wide_top_k_ties_f32"),
        ({"k_ties": False}, "wide_top_k_equal_f32"),
        ({"p_ties": False}, "wide_top_p_equal_f32"),
        ({"p_inclusive": False}, "wide_top_p_f32"),
        ({"order": "p then k"}, "wide_top_k_top_p_f32"),
        ({"p_inclusive": False}, "wide_top_k_most_top_p_f32"),
        ({"gumbel_of": uniform_in_float32}, "uniform_next_to_one_f32"),
        ({"rows_seed": False}, "temperature_f32"),
        ({"rows_step": False}, "temperature_f32"),
        ({"by_step": False}, "temperature_f32"),
        ({"seed_mask": 0xFFFFFFFF}, "temperature_f32"),
    ],
)
def test_the_mistake_is_seen(mistake: dict, name: str) -> None:
    case = load(f"sample/{name}")
    assert sampler(case.tensors["logits"], case.config, **mistake) != case.tensors["tokens"].tolist()


def test_the_edge_case_holds_the_largest_uniform() -> None:
    """What makes the case: 24 set bits in one word, for a token that a finite score never chooses."""
    case = load("sample/uniform_next_to_one_f32")
    high = words(case.config["seed"], case.config["step"], 0, case.tensors["logits"].shape[1]) >> 8
    index = int(high.argmax())
    assert high[index] == 2**24 - 1
    assert case.tensors["logits"][0, index] + 25 * math.log(2) < case.tensors["logits"].max()
