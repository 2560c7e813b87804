"""Exercise 0.1: adjacent records become one read."""

from __future__ import annotations

import numpy as np
import pytest

from flashlite.course.checks import expect, require, rng
from flashlite.drive.reads import merge_adjacent

Array = np.ndarray


def first_by_loop(offsets: Array, sizes: Array, most: int, overlaps: bool = False) -> list[int]:
    """The first record of each read; overlaps: whether records that overlap the one before join it too (a mistake)."""
    first: list[int] = []
    held, end = 0, -1
    for i, (offset, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
        touches = offset == end or (overlaps and offset < end)
        if not touches or held == most:
            first.append(i)
            held = 0
        held, end = held + 1, offset + size
    return first


def mistakes(offsets: Array, sizes: Array, most: int) -> dict[str, Array]:
    """What the usual mistakes give."""
    expected, runs = first_by_loop(offsets, sizes, most), first_by_loop(offsets, sizes, len(offsets))
    stride = [i for i in range(len(offsets)) if i == 0 or offsets[i] - offsets[i - 1] != sizes[i]]
    wrong = {
        "The limit of `most` records was not kept.": runs,
        "A read may have `most` records, not more.": first_by_loop(offsets, sizes, most + 1),
        "Records must be counted from where their run begins, not from the first of all.": [
            i for i in range(len(offsets)) if i in runs or i % most == 0
        ],
        "Records that overlap must not be merged.": first_by_loop(offsets, sizes, most, overlaps=True),
        "A record ends at its own offset plus its own size: compare with the sizes of the records before.": stride,
        "The first record begins a read too.": expected[1:],
        "These are offsets in the file; asked for are indices of records.": offsets[expected],
        "These are the last records of the reads, not the first.": [*(i - 1 for i in expected[1:]), len(offsets) - 1],
    }
    return {text: np.array(indices) for text, indices in wrong.items()}


def check(offsets: Array, sizes: Array, most: int, what: str) -> None:
    """Compare merge_adjacent with the plain loop."""
    found = merge_adjacent(offsets, sizes, most)
    kind = f"{found.dtype} array" if isinstance(found, np.ndarray) else type(found).__name__
    require(kind.startswith(("int", "uint")), f"{what}: returned a {kind}", "an int64 array of indices")
    expected = np.array(first_by_loop(offsets, sizes, most), np.int64)
    expect(found, expected, f"{what}: first record of each read", mistakes(offsets, sizes, most))


def records_in_runs(size: Array, lengths: Array) -> tuple[Array, Array]:
    """Offsets and sizes of records that lie side by side in runs of these lengths, with gaps between the runs."""
    random = rng()
    sizes = np.resize(size, int(lengths.sum())).astype(np.int64)
    gaps = np.zeros(len(sizes), np.int64)
    gaps[np.cumsum(lengths)[:-1]] = random.integers(1, 50, len(lengths) - 1)
    return 1000 + np.cumsum(sizes + gaps) - sizes, sizes


@pytest.mark.points("0.1", 2)
def test_records_side_by_side_become_one_read() -> None:
    random = rng()
    same = records_in_runs(np.array([64]), random.integers(1, 9, 30))
    check(*same, 1000, "records of 64 bytes")
    mixed = records_in_runs(random.integers(1, 40, 400), random.integers(1, 9, 30))
    check(*mixed, 1000, "records of 1 to 39 bytes")


@pytest.mark.points("0.1", 2)
@pytest.mark.filterwarnings("error")
def test_a_read_has_at_most_most_records() -> None:
    random = rng()
    lengths = random.permutation(np.concatenate([random.integers(1, 30, 20), [7, 14, 15, 25]]))
    for most in (7, 2, 3, 1):
        check(*records_in_runs(np.array([16]), lengths), most, f"most = {most}")


@pytest.mark.points("0.1", 1)
def test_special_cases() -> None:
    none = np.zeros(0, np.int64)
    check(none, none, 3, "no records")
    check(np.array([40]), np.array([8]), 3, "one record")
    offsets = 8 * np.sort(rng().integers(0, 30, 40))
    offsets[20:22] = offsets[20]
    sizes = np.full(len(offsets), 8)
    sizes[5::6] = 12
    copies = offsets.copy(), sizes.copy()
    check(offsets, sizes, 4, "records that overlap or come twice")
    expect((offsets, sizes), copies, "offsets and sizes after the call", {})
