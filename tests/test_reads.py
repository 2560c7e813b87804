"""Planning of reads against a plain loop: every record's bytes go to its address once, in as few reads as allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashlite.drive.reads import LARGEST_READ, MOST_PARTS, Reads, merge_adjacent, plan_reads

Record = tuple[int, int]  # offset and size, bytes

FILE = np.random.default_rng(0).integers(0, 256, 400, np.uint8)
QUICK = settings(deadline=None, max_examples=100)
ANY_RECORDS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 100)), max_size=30)
BLOCKS = st.lists(st.builds(lambda i: (8 * i, 8), st.integers(0, 45)), max_size=40)


@st.composite
def runs(draw: st.DrawFn) -> list[Record]:
    """Records of many sizes, most of them adjacent, in any order."""
    records, end = [], 0
    for gap, size in draw(st.lists(st.tuples(st.sampled_from([0, 0, 0, 1]), st.integers(0, 20)), max_size=15)):
        records.append((end + gap, size))
        end += gap + size
    return draw(st.permutations(records))


RECORDS = ANY_RECORDS | BLOCKS | runs()
LIMITS = st.integers(1, 150) | st.integers(1, 40)


def columns(records: list[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and sizes."""
    table = np.array(records, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def plan(records: list[Record], largest: int = LARGEST_READ) -> Reads:
    """A plan whose addresses don't matter."""
    return plan_reads(*columns(records), np.zeros(len(records), np.uint64), largest)


def scattered_addresses(sizes: np.ndarray, seed: int) -> np.ndarray:
    """A place for each record in a memory of its own, in random order and a byte apart."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    addresses = np.empty(len(sizes), np.uint64)
    addresses[order] = 1 + np.cumsum(sizes[order] + 1) - (sizes[order] + 1)
    return addresses


def carry_out(reads: Reads, memory: np.ndarray, writes: np.ndarray) -> None:
    """What a drive does with these reads: `writes` counts how often each byte of the memory was written."""
    for i in range(reads.number):
        position = int(reads.offset[i])
        for base, length in reads.iovecs[reads.first[i] : reads.first[i] + reads.count[i]].tolist():
            memory[base : base + length] = FILE[position : position + length]
            writes[base : base + length] += 1
            position += length
        assert position == reads.offset[i] + reads.nbytes[i]


def first_by_loop(records: list[Record], most: int) -> list[int]:
    """Which of these sorted records begin a read."""
    first: list[int] = []
    for i, (offset, _) in enumerate(records):
        joins = i > 0 and sum(records[i - 1]) == offset and i - first[-1] < most
        if not joins:
            first.append(i)
    return first


@QUICK
@given(records=RECORDS, largest=LIMITS, seed=st.integers(0, 1000))
@example(records=[(0, 10), (0, 10), (10, 10), (10, 10)], largest=100, seed=0)
@example(records=[(0, 10), (5, 10), (10, 10)], largest=100, seed=0)
@example(records=[(10, 0), (10, 5), (10, 0), (15, 0)], largest=100, seed=0)
def test_every_record_lands_at_its_address_exactly_once(records: list[Record], largest: int, seed: int) -> None:
    offsets, sizes = columns(records)
    addresses = scattered_addresses(sizes, seed)
    memory = np.zeros(int(sizes.sum()) + len(sizes) + 1, np.uint8)
    expected, writes, expected_writes = memory.copy(), memory.copy(), memory.copy()
    for (offset, size), address in zip(records, addresses.astype(int), strict=True):
        expected[address : address + size] = FILE[offset : offset + size]
        expected_writes[address : address + size] = 1
    carry_out(plan_reads(offsets, sizes, addresses, largest), memory, writes)
    assert np.array_equal(memory, expected)
    assert np.array_equal(writes, expected_writes)


@QUICK
@given(records=RECORDS, largest=LIMITS)
def test_each_record_is_part_of_one_read(records: list[Record], largest: int) -> None:
    reads = plan(records, largest)
    assert reads.first.tolist() == (np.cumsum(reads.count) - reads.count).tolist()
    assert reads.count.sum() == len(reads.iovecs) == len(records)
    assert (reads.count > 0).all()
    assert reads.nbytes.sum() == sum(size for _, size in records)


@QUICK
@given(records=RECORDS, largest=LIMITS)
def test_reads_are_in_the_order_of_the_file(records: list[Record], largest: int) -> None:
    offset = plan(records, largest).offset
    assert (offset[1:] >= offset[:-1]).all()


@QUICK
@given(records=RECORDS, largest=LIMITS)
@example(records=[(0, 4), (4, 12), (16, 12)], largest=20)
def test_merged_reads_stay_within_the_limit(records: list[Record], largest: int) -> None:
    reads = plan(records, largest)
    assert (reads.nbytes[reads.count > 1] <= largest).all()


@QUICK
@given(records=RECORDS, largest=LIMITS)
def test_reads_that_touch_are_apart_only_because_the_limit_is_reached(records: list[Record], largest: int) -> None:
    reads, biggest = plan(records, largest), max((size for _, size in records), default=1)
    touching = reads.offset[:-1] + reads.nbytes[:-1] == reads.offset[1:]
    assert ((reads.count[:-1] + 1) * max(1, biggest) > largest)[touching].all()


@QUICK
@given(blocks=st.sets(st.integers(0, 60)), size=st.integers(1, 20), parts=st.integers(1, 6), seed=st.integers(0, 9))
def test_records_of_one_size_take_the_fewest_reads(blocks: set[int], size: int, parts: int, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(sorted(blocks)).astype(int)
    reads = plan([(size * block, size) for block in shuffled.tolist()], parts * size + size - 1)
    in_order = [(size * block, size) for block in sorted(blocks)]
    first = first_by_loop(in_order, parts)
    assert reads.offset.tolist() == [in_order[i][0] for i in first]
    assert reads.count.tolist() == np.diff(first, append=len(in_order)).tolist()


@QUICK
@given(records=RECORDS.map(sorted), most=st.integers(1, 6))
def test_merging_is_what_a_plain_loop_does(records: list[Record], most: int) -> None:
    first = merge_adjacent(*columns(records), most)
    assert first.dtype == np.int64
    assert first.tolist() == first_by_loop(records, most)


@pytest.mark.parametrize(
    ("records", "offsets", "sizes"),
    [
        ([(0, 10), (10, 10)], [0], [20]),
        ([(10, 10), (0, 10)], [0], [20]),
        ([(0, 10), (11, 10)], [0, 11], [10, 10]),
        ([(0, 10), (9, 10)], [0, 9], [10, 10]),
        ([(0, 10), (0, 10)], [0, 0], [10, 10]),
        ([(0, 10), (10, 30), (40, 1)], [0], [41]),
    ],
)
def test_only_adjacent_records_become_one_read(records: list[Record], offsets: list[int], sizes: list[int]) -> None:
    reads = plan(records)
    assert reads.offset.tolist() == offsets
    assert reads.nbytes.tolist() == sizes


def test_record_above_the_limit_is_a_read_of_its_own() -> None:
    reads = plan([(0, LARGEST_READ + 1), (LARGEST_READ + 1, LARGEST_READ + 1)])
    assert reads.nbytes.tolist() == [LARGEST_READ + 1] * 2


def test_default_limit_fills_reads_to_the_brim() -> None:
    reads = plan([(4096 * i, 4096) for i in range(150)])
    assert reads.nbytes.tolist() == [LARGEST_READ, LARGEST_READ, 22 * 4096]


def test_no_read_has_more_parts_than_the_system_takes() -> None:
    reads = plan([(i, 1) for i in range(2 * MOST_PARTS + 5)])
    assert reads.count.tolist() == [MOST_PARTS, MOST_PARTS, 5]


def test_no_records_are_no_reads() -> None:
    reads = plan([])
    assert reads.number == 0
    assert [len(part) for part in (reads.nbytes, reads.first, reads.count, reads.iovecs)] == [0] * 4
    assert merge_adjacent(*columns([]), 5).tolist() == []


def test_planning_leaves_its_arguments_as_they_were() -> None:
    given_ = [np.array(values) for values in ([16, 0, 8], [8, 8, 8], [3, 2, 1])]
    before = [values.copy() for values in given_]
    plan_reads(given_[0], given_[1], given_[2].astype(np.uint64))
    assert all(np.array_equal(now, then) for now, then in zip(given_, before, strict=True))
