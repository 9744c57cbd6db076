"""Cases of `sample`: the next token of every row of logits [B, V], as golden/README.md defines it: row b draws with seed + b at step + b.

The expected tokens come from float64. So that float32 must agree with them, every decision on the way is a clear
one: numbers are drawn again until the winner leads and no cut of top-k or top-p is close.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..philox import words
from ..recipe import Draw, new_case, rounded
from ..writer import CaseWriter

# The winner's lead in the race, absolute and relative to its score.
LEAD_MIN = 1e-3
# The distance of a top-p mass from p, and of the last kept z from the first one left out where they are no tie.
CUT_MIN = 1e-4
# With this seed, at step 0, this word has its 24 high bits set: u = 1 - 2^-25, which float32 rounds to 1.
EDGE_SEED, EDGE_WORD = 4696, 376


@dataclasses.dataclass(frozen=True)
class Settings:
    """The config of a case but for its seed; `quantum`: logits are multiples of it, so that ties occur; `masked`: how many are -inf."""

    rows: int
    vocab: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    step: int = 0
    quantum: float = 0.0
    masked: float = 0.0


SETTINGS = {
    "greedy": Settings(rows=5, vocab=107, temperature=0.0),
    "greedy_ties": Settings(rows=9, vocab=65, temperature=0.0, quantum=2.0),
    "greedy_wide": Settings(rows=3, vocab=1031, temperature=0.0, quantum=0.5),
    "temperature": Settings(rows=7, vocab=107, temperature=0.8, step=3),
    "cold": Settings(rows=4, vocab=65, temperature=0.05, step=1),
    "hot": Settings(rows=6, vocab=1031, temperature=3.0, step=255),
    "top_k": Settings(rows=24, vocab=107, temperature=5.0, top_k=5, step=2),
    "top_k_one": Settings(rows=3, vocab=65, temperature=2.0, top_k=1, step=7),
    "top_k_ties": Settings(rows=16, vocab=65, temperature=2.5, top_k=7, step=4, quantum=1.0),
    "top_k_all": Settings(rows=5, vocab=65, temperature=1.0, top_k=200, step=5),
    "top_p": Settings(rows=8, vocab=107, temperature=1.25, top_p=0.7, step=11),
    "top_p_ties": Settings(rows=24, vocab=65, temperature=1.5, top_p=0.6, step=7, quantum=1.0),
    "top_p_small": Settings(rows=5, vocab=1031, temperature=1.0, top_p=0.01, step=9),
    "top_k_top_p": Settings(rows=16, vocab=1031, temperature=4.0, top_k=20, top_p=0.6, step=100),
    "wide": Settings(rows=2, vocab=5003, temperature=1.2, step=8),
    "wide_greedy": Settings(rows=3, vocab=5003, temperature=0.0, quantum=1.0),
    "wide_top_k": Settings(rows=16, vocab=2053, temperature=6.0, top_k=5, step=12),
    "wide_top_k_ties": Settings(rows=16, vocab=2053, temperature=8.0, top_k=9, step=13, quantum=1.0),
    "wide_top_k_equal": Settings(rows=2, vocab=5003, temperature=1.0, top_k=40, step=14, quantum=1000.0),
    "wide_top_k_most": Settings(rows=2, vocab=2053, temperature=5.0, top_k=2052, step=15),
    "wide_top_p": Settings(rows=12, vocab=2053, temperature=0.9, top_p=0.6, step=16),
    "wide_top_p_equal": Settings(rows=2, vocab=2053, temperature=1.0, top_p=0.4, step=17, quantum=1000.0),
    "wide_top_k_top_p": Settings(rows=6, vocab=5003, temperature=6.0, top_k=60, top_p=0.5, step=18),
    "wide_top_k_most_top_p": Settings(rows=10, vocab=2053, temperature=0.9, top_k=1500, top_p=0.5, step=19),
    "widest_top_k": Settings(rows=1, vocab=50257, temperature=2.0, top_k=40, step=20),
    "widest_top_p_small": Settings(rows=1, vocab=50257, temperature=1.5, top_p=0.001, step=21),
    "masked_top_k": Settings(rows=5, vocab=107, temperature=3.0, top_k=6, step=22, masked=0.5),
    "wide_masked_top_k": Settings(rows=5, vocab=2053, temperature=6.0, top_k=6, step=23, masked=0.9),
    "wide_masked_top_p": Settings(rows=5, vocab=2053, temperature=1.5, top_p=0.5, step=24, masked=0.97),
    "single_token": Settings(rows=2, vocab=1, temperature=1.0, step=1),
}
BF16 = ("greedy_ties", "top_k_ties", "temperature", "wide_top_k_ties")


def cases() -> Iterator[CaseWriter]:
    for name, settings in SETTINGS.items():
        yield record(name, "f32", settings)
    for name in BF16:
        yield record(name, "bf16", SETTINGS[name])
    yield uniform_next_to_one()


def record(name: str, dtype: str, settings: Settings) -> CaseWriter:
    """Draws logits and a seed until every row's decision is clear."""
    config = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    writer, draw = new_case("sample", name, dtype, config)
    while True:
        logits = rounded({"logits": draw_logits(draw, settings)}, dtype)["logits"]
        seed = draw_seed(draw)
        rows = [pick(row, settings, seed + b, settings.step + b) for b, row in enumerate(logits.float().numpy())]
        if all(clear for _, clear in rows):
            break
    config |= {"seed": seed, "step": settings.step}
    return finish(writer, logits, [token for token, _ in rows])


def draw_logits(draw: Draw, settings: Settings) -> Tensor:
    logits = 2 * draw.activations(settings.rows, settings.vocab)
    if settings.masked:
        logits[draw.uniform(*logits.shape) < settings.masked] = -torch.inf
    return (logits / settings.quantum).round() * settings.quantum if settings.quantum else logits


def draw_seed(draw: Draw) -> int:
    """A seed of 53 bits, both key words in use; JSON readers that hold numbers as doubles keep it exactly."""
    return int(torch.randint(2**53, (1,), generator=draw.generator))


def finish(writer: CaseWriter, logits: Tensor, tokens: list[int]) -> CaseWriter:
    writer.input("logits", logits)
    writer.output("tokens", torch.tensor(tokens), rule="exact")
    return writer


def uniform_next_to_one() -> CaseWriter:
    """One u is 1 - 2^-25. Rounded to 1 it would win every race with an infinite score; here it belongs to an unlikely token."""
    settings = Settings(rows=1, vocab=1031, temperature=1.0)
    config = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": EDGE_SEED, "step": 0}
    writer, draw = new_case("sample", "uniform_next_to_one", "f32", config)
    clear = False
    while not clear:
        logits = draw_logits(draw, settings)
        logits[0, EDGE_WORD] = -40.0
        token, clear = pick(logits[0].numpy(), settings, EDGE_SEED, 0)
    return finish(writer, logits, [token])


def pick(logits: np.ndarray, settings: Settings, seed: int, step: int) -> tuple[int, bool]:
    """The token for one row of logits [V] float32, and whether every decision on the way was clear."""
    if settings.temperature == 0.0:
        return int(np.argmax(logits)), True  # the first of equals, no arithmetic
    score, clear = race(logits, settings, seed, step)
    token = int(np.argmax(score))
    lead = score[token] - np.delete(score, token).max(initial=-np.inf)
    return token, clear and lead >= LEAD_MIN * max(1.0, abs(score[token]))


def race(logits: np.ndarray, settings: Settings, seed: int, step: int) -> tuple[np.ndarray, bool]:
    """The scores [V] of which the greatest wins, -inf where top-k or top-p leave a token out, and whether what they leave out is clear."""
    z = (logits / logits.dtype.type(settings.temperature)).astype(np.float64)
    kept_k, clear_k = keep_top_k(z, settings.top_k)
    kept, clear_p = keep_top_p(z, kept_k, settings.top_p)
    u = ((words(seed, step, 0, len(z)) >> 8).astype(np.float64) + 0.5) * 2.0**-24
    return np.where(kept, z - np.log(-np.log(u)), -np.inf), clear_k and clear_p


def keep_top_k(z: np.ndarray, k: int) -> tuple[np.ndarray, bool]:
    """Which z are at least the k-th largest (0: all)."""
    if k == 0 or k >= len(z):
        return np.ones(len(z), dtype=bool), True
    limit = np.sort(z)[-k]
    kept = z >= limit
    return kept, limit - z[~kept].max(initial=-np.inf) >= CUT_MIN


def keep_top_p(z: np.ndarray, candidates: np.ndarray, p: float) -> tuple[np.ndarray, bool]:
    """Which candidates are in the smallest set of largest z whose softmax mass, of all candidates, reaches p (1: all)."""
    if p == 1.0:
        return candidates, True
    mass = np.where(candidates, np.exp(z - z[candidates].max()), 0.0)
    mass /= mass.sum()
    levels = np.unique(z[candidates])[::-1]  # the distinct values, largest first: equals enter together
    reached = np.array([mass[z >= level].sum() for level in levels])
    limit = levels[np.argmax(reached >= p)]
    kept = candidates & (z >= limit)
    below = z[candidates & ~kept].max(initial=-np.inf)
    return kept, bool(np.abs(reached - p).min() >= CUT_MIN and limit - below >= CUT_MIN)
