"""Philox4x32-10, the counter-based random generator of Random123: word = f(key, counter), no state.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import numpy as np

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
# The key grows by these (golden ratio, sqrt(3) - 1) from round to round.
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
HIGH_SHIFT = np.uint64(32)


def philox4x32(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Counters [..., 4] u32 and a key of two words → random words [..., 4] u32."""
    c0, c1, c2, c3 = (counters[..., i].astype(np.uint64) for i in range(4))
    for round_index in range(ROUNDS):
        k0, k1 = (np.uint64((key[i] + round_index * KEY_STEPS[i]) & 0xFFFFFFFF) for i in range(2))
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> HIGH_SHIFT) ^ c1 ^ k0,
            product1 & LOW,
            (product0 >> HIGH_SHIFT) ^ c3 ^ k1,
            product0 & LOW,
        )
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(seed: int, step: int, row: int, count: int) -> np.ndarray:
    """The `count` random words [count] u32 of one row at one sampling step.

    Word i is word i mod 4 of the block with counter (i div 4, step, row, 0) and key (seed low, seed high).
    """
    blocks = -(-count // 4)
    counters = np.zeros((blocks, 4), dtype=np.uint32)
    counters[:, 0] = np.arange(blocks, dtype=np.uint32)
    counters[:, 1] = step
    counters[:, 2] = row
    return philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:count]
