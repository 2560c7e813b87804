"""Exercise 0.1: adjacent records become one read."""

from __future__ import annotations

import numpy as np
import pytest

from flashlite.course.checks import Call, expect, expect_each, require, rng
from flashlite.drive.reads import merge_adjacent

Array = np.ndarray


def first_by_loop(offsets: Array, ends: Array, most: int, overlaps: bool = False) -> list[int]:
    """The first record of each read; overlaps: whether records that overlap the one before join it too (a mistake)."""
    first: list[int] = []
    held, before = 0, -1
    for i, (offset, end) in enumerate(zip(offsets.tolist(), ends.tolist(), strict=True)):
        touches = offset == before or (overlaps and offset < before)
        if not touches or held == most:
            first.append(i)
            held = 0
        held, before = held + 1, end
    return first


def mistakes(offsets: Array, sizes: Array, most: int) -> dict[str, Array]:
    """What the usual mistakes give."""
    n, ends, by_next = len(offsets), offsets + sizes, offsets + np.append(sizes[1:], sizes[:1])
    expected, runs = first_by_loop(offsets, ends, most), first_by_loop(offsets, ends, n)
    wrong = {
        "The limit of `most` records was not kept.": runs,
        "A read may have `most` records, not more.": first_by_loop(offsets, ends, most + 1),
        "Records must be counted from where their run begins, not from the first of all.": [
            i for i in range(n) if i in runs or i % most == 0
        ],
        "Records that overlap must not be merged.": first_by_loop(offsets, ends, most, overlaps=True),
        "A record ends at its own offset plus its own size: compare with the sizes of the records before.": (
            first_by_loop(offsets, by_next, most)
        ),
        "The first record begins a read too.": expected[1:],
        "These are offsets in the file; asked for are indices of records.": offsets[expected],
        "These are the last records of the reads, not the first.": [i - 1 for i in [*expected[1:], n]] if n else [],
    }
    return {text: np.array(indices) for text, indices in wrong.items()}


def call(offsets: Array, sizes: Array, most: int, what: str) -> Call:
    """A call of merge_adjacent, which is compared with the plain loop."""

    def run() -> Array:
        found = merge_adjacent(offsets, sizes, most)
        kind = f"{found.dtype} array" if isinstance(found, np.ndarray) else type(found).__name__
        require(kind.startswith(("int", "uint")), f"{what}: returned a {kind}", "an int64 array of indices")
        return found

    expected = np.array(first_by_loop(offsets, offsets + sizes, most), np.int64)
    return Call(run, expected, f"{what}: first record of each read", mistakes(offsets, sizes, most))


def records_in_runs(size: Array, lengths: Array) -> tuple[Array, Array]:
    """Offsets and sizes of records that lie side by side in runs of these lengths, with gaps between the runs."""
    random = rng()
    sizes = np.resize(size, int(lengths.sum())).astype(np.int64)
    gaps = np.zeros(len(sizes), np.int64)
    gaps[np.cumsum(lengths)[:-1]] = random.integers(1, 50, len(lengths) - 1)
    return 1000 + np.cumsum(sizes + gaps) - sizes, sizes


def without_limit() -> list[Call]:
    """Records side by side, and no read too large."""
    random = rng()
    same = records_in_runs(np.array([64]), random.integers(1, 9, 30))
    mixed = records_in_runs(random.integers(1, 40, 400), random.integers(1, 9, 30))
    return [call(*same, 1000, "records of 64 bytes"), call(*mixed, 1000, "records of 1 to 39 bytes")]


def with_limit() -> list[Call]:
    """Runs that are longer than a read may be."""
    random = rng()
    lengths = random.permutation(np.concatenate([random.integers(1, 30, 20), [7, 14, 15, 25]]))
    return [call(*records_in_runs(np.array([16]), lengths), most, f"most = {most}") for most in (7, 2, 3, 1)]


def overlapping() -> tuple[Array, Array]:
    """Offsets and sizes of sorted records that overlap, or come twice."""
    offsets, sizes = 8 * np.sort(rng().integers(0, 30, 40)), np.full(40, 8)
    offsets[20:22], sizes[5::6] = offsets[20], 12
    return offsets, sizes


@pytest.mark.points("0.1", 0)
def test_records_side_by_side_become_one_read() -> None:
    expect_each(without_limit(), beside=with_limit())


@pytest.mark.points("0.1", 0)
@pytest.mark.filterwarnings("error")
def test_a_read_has_at_most_most_records() -> None:
    expect_each(with_limit(), beside=without_limit())


@pytest.mark.points("0.1", 0)
def test_special_cases() -> None:
    none, given, copies = np.zeros(0, np.int64), overlapping(), overlapping()
    calls = [
        call(none, none, 3, "no records"),
        call(np.array([40]), np.array([8]), 3, "one record"),
        call(*given, 4, "records that overlap or come twice"),
    ]
    expect_each(calls, beside=[*without_limit(), *with_limit()])
    expect(given, copies, "offsets and sizes after the call")
