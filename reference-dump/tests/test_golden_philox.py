"""The random generator behind the `sample` cases, against the published vectors of Random123 (`kat_vectors`)."""

import numpy as np
import pytest

from touchstone_reference.philox import philox4x32, words

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, (ONES, ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    assert philox4x32(np.array(counter, dtype=np.uint32), key).tolist() == expected


def test_words_are_those_of_the_specified_counters() -> None:
    """Every part of the counter and of the key has a place of its own; swapped, the cases would still look random."""
    seed, step, row = (7 << 32) | 5, 11, 3
    drawn = words(seed, step, row, 6)
    for i, word in enumerate(drawn):
        block = philox4x32(np.array([i // 4, step, row, 0], dtype=np.uint32), (5, 7))
        assert word == block[i % 4]
