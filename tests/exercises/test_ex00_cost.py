"""Exercises 0.2 and 0.3: what reads cost on a drive, and what a token costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from flashlite.bench.cost import Speeds, Work, io_ms, token_ms
from flashlite.course.checks import Call, expect, expect_each, rng
from flashlite.drive.probe import Curve

SIZES, DEPTHS = (4096, 16384, 65536), (1, 4, 16, 64)


@dataclass(frozen=True)
class Drive:
    """A drive whose throughput is base * size^p * depth^q, within what was measured."""

    base: float
    p: float
    q: float

    def rate(self, nbytes: float, depth: float) -> float:
        """Bytes a second with `depth` reads of `nbytes` in flight."""
        size = min(max(nbytes, SIZES[0]), SIZES[-1]) / SIZES[0]
        return self.base * size**self.p * min(max(depth, DEPTHS[0]), DEPTHS[-1]) ** self.q

    def curve(self) -> Curve:
        """What a probe of this drive measures; in log-log scale it is a plane, so that interpolation is exact."""
        rows = tuple(tuple(self.rate(size, depth) / 1e6 for depth in DEPTHS) for size in SIZES)
        return Curve("aio", 512, True, SIZES, DEPTHS, rows, 3000.0)

    def ms(self, nbytes: float, size: float, depth: float) -> float:
        """Milliseconds for `nbytes` in reads of this size and depth."""
        return 1e3 * nbytes / self.rate(size, depth)


def any_drive(random: np.random.Generator) -> Drive:
    """A drive of its own for each grading."""
    return Drive(random.uniform(20e6, 90e6), random.uniform(0.5, 0.8), random.uniform(0.4, 0.7))


def io_call(drive: Drive, reads: float, size: float, batches: int, what: str) -> Call:
    """A call of io_ms, for reads of this size."""
    nbytes, in_flight = reads * size, reads / batches
    right = drive.ms(nbytes, size, in_flight)
    mistakes = {
        "These are seconds; milliseconds are asked for.": right / 1e3,
        "This is the time of one read; all of them are asked for.": right / reads,
        "This is the time of one batch; all of them are asked for.": right / batches,
        "This is each batch's time as if it moved all bytes.": right * batches,
        "The rate depends on the size of one read, nbytes / reads, not on all bytes.": drive.ms(
            nbytes, nbytes, in_flight
        ),
        "All reads were taken to be in flight at once; only those of one batch are.": drive.ms(nbytes, size, reads),
        "The depth is reads / batches, not the number of batches.": drive.ms(nbytes, size, batches),
        "The reads of a batch are in flight together, not one at a time.": drive.ms(nbytes, size, 1),
    }
    return Call(lambda: io_ms(drive.curve(), reads, nbytes, batches), right, f"{what}, ms", mistakes, 1e-6 * right)


def one_at_a_time() -> list[Call]:
    """Each read is a batch, and they are fewer than the most that can be in flight."""
    random = rng()
    drive, size, reads = any_drive(random), random.uniform(5000, 15000), int(random.integers(20, 60))
    return [io_call(drive, reads, size, reads, f"{reads} reads in {reads} batches")]


def together() -> list[Call]:
    """A batch has many reads."""
    random = rng()
    drive, size, batches = any_drive(random), random.uniform(5000, 15000), int(random.integers(5, 9))
    reads = batches * random.uniform(10, 40)
    return [io_call(drive, reads, size, batches, f"{reads:.1f} reads in {batches} batches")]


@pytest.mark.points("0.2", 0)
def test_one_read_in_flight_costs_what_its_size_costs() -> None:
    expect_each(one_at_a_time(), beside=together())


@pytest.mark.points("0.2", 0)
def test_a_batch_is_in_flight_together() -> None:
    expect_each(together(), beside=one_at_a_time())


@pytest.mark.points("0.2", 0)
def test_extremes() -> None:
    random = rng()
    drive, size = any_drive(random), random.uniform(5000, 15000)
    curve, few = drive.curve(), random.uniform(0.1, 0.9)
    expect(io_ms(curve, 0, 0, 12), 0.0, "a token that reads nothing, ms", {}, 1e-12)
    right = drive.ms(few * size, size, 1)
    found = io_ms(curve, few, few * size, 12)
    mistakes = {"A fraction of a read still costs only its own bytes.": right / few}
    expect(found, right, f"{few:.2f} reads a token in 12 batches, ms", mistakes, 1e-6 * right)
    right = drive.ms(9000 * size, size, DEPTHS[-1])
    expect(io_ms(curve, 9000, 9000 * size, 3), right, "3000 reads a batch, measured to 64, ms", {}, 1e-6 * right)


@dataclass(frozen=True)
class Token:
    """A token's work with the milliseconds of its parts; begun: what beginning and ending its batches takes."""

    curve: Curve
    work: Work
    speeds: Speeds
    io: float
    memory: float
    product: float
    begun: float


def any_token(overlapped: bool, compute_share: float) -> Token:
    """A token whose computing takes `compute_share` of the time that its reads take."""
    random = rng()
    drive, size, batches = any_drive(random), random.uniform(5000, 15000), int(random.integers(5, 30))
    reads = batches * random.uniform(2, 40)
    io = drive.ms(reads * size, size, reads / batches)
    memory, compute, begun = io * random.uniform(0.1, 0.4), io * compute_share, io * random.uniform(0.05, 0.2)
    rest = compute * random.uniform(0.3, 0.6)
    speeds = Speeds(random.uniform(1e9, 9e9), random.uniform(1e9, 9e9), rest)
    copied, multiplied = memory * speeds.copy / 1e3, (compute - rest) * speeds.product / 1e3
    work = Work(reads, reads * size, batches, copied, multiplied, overlapped)
    curve = replace(drive.curve(), batch_ms=begun / batches)
    return Token(curve, work, speeds, io, memory, compute - rest, begun)


def token_call(overlapped: bool, compute_share: float) -> Call:
    """A call of token_ms, which is compared with the sum of the parts."""
    token = any_token(overlapped, compute_share)
    rest, io, memory, product, begun = token.speeds.rest_ms, token.io, token.memory, token.product, token.begun
    compute = rest + product
    right = memory + begun + (max(io, compute) if overlapped else io + compute)
    mistakes = {
        "Memory management is missing.": right - memory,
        "What each batch takes to be begun and ended, curve.batch_ms, is missing.": right - begun,
        "Each of work.batches batches takes curve.batch_ms, not all of them together.": (
            right - begun + token.curve.batch_ms
        ),
        "These are seconds; milliseconds are asked for.": right / 1e3,
        **(overlap_mistakes(token) if overlapped else sum_mistakes(token)),
    }
    what = f"overlapped = {overlapped}, computing takes {compute_share:g} of the reads' time: one token, ms"
    return Call(lambda: token_ms(token.curve, token.work, token.speeds), right, what, mistakes, 1e-8 * right)


def sum_mistakes(token: Token) -> dict[str, float]:
    """What usual mistakes give where nothing overlaps."""
    rest, io, memory, product = token.speeds.rest_ms, token.io, token.memory, token.product
    on_top = memory + token.begun
    right = on_top + io + rest + product
    alone = "Reads and computing add up: nothing overlaps unless work.overlapped says so."
    return {
        "The rest of the token, speeds.rest_ms, is missing.": right - rest,
        "speeds.rest_ms is in milliseconds already.": right + 999 * rest,
        "Bytes / (bytes a second) are seconds, not milliseconds.": right - 0.999 * (memory + product),
        "What is copied takes seconds, bytes / (bytes a second); milliseconds are asked for.": right - 0.999 * memory,
        "Products take seconds, bytes / (bytes a second); milliseconds are asked for.": right - 0.999 * product,
        alone: on_top + max(io, rest + product),
        alone + " ": on_top + rest + max(io, product),
    }


def overlap_mistakes(token: Token) -> dict[str, float]:
    """What usual mistakes give with overlap."""
    rest, io, memory, product, begun = token.speeds.rest_ms, token.io, token.memory, token.product, token.begun
    compute = rest + product
    copies = "Only reads and computing overlap: copies and batches' beginnings and ends still take their own time."
    computing = "All computing runs during the reads: the products and speeds.rest_ms together."
    slower = "With work.overlapped the processor computes during the reads: the slower of the two counts."
    return {
        slower: memory + begun + io + compute,
        "The slower of the two counts, not the faster.": memory + begun + min(io, compute),
        computing: memory + begun + rest + max(io, product),
        computing + " ": memory + begun + product + max(io, rest),
        computing + "  ": memory + begun + max(io, product),
        computing + "   ": memory + begun + max(io, rest),
        computing + "    ": memory + begun + max(io, rest, product),
        copies: begun + max(io, memory + compute),
        copies + " ": begun + max(io, memory, compute),
        copies + "  ": begun + max(io + memory, compute),
        copies + "   ": memory + max(io + begun, compute),
        copies + "    ": memory + max(io, begun + compute),
        copies + "     ": max(io + memory + begun, compute),
        copies + "      ": max(io, memory + begun + compute),
    }


@pytest.mark.points("0.3", 1)
def test_parts_add_up_without_overlap() -> None:
    expect_each([token_call(False, share) for share in (0.5, 2.5)])


@pytest.mark.points("0.3", 1)
def test_the_slower_of_reads_and_computing_counts_where_they_overlap() -> None:
    expect_each([token_call(True, share) for share in (0.5, 0.95, 1.2, 2.5)])


@pytest.mark.points("0.3", 1)
def test_a_token_that_leaves_something_out() -> None:
    for overlapped in (False, True):
        token = any_token(overlapped, 0.7)
        rest, work, curve, speeds = token.speeds.rest_ms, token.work, token.curve, token.speeds
        nothing = replace(work, reads=0, bytes=0, batches=0, copied_bytes=0, product_bytes=0)
        expect(token_ms(curve, nothing, speeds), rest, "a token without FFNs, ms", {}, 1e-9 * rest)
        idle = replace(work, reads=0, bytes=0)
        right = rest + token.product + token.memory + token.begun
        mistakes = {"A batch takes curve.batch_ms whatever it reads.": right - token.begun}
        expect(token_ms(curve, idle, speeds), right, "a token that reads nothing, ms", mistakes, 1e-9 * right)
        alone = replace(work, copied_bytes=0, product_bytes=0)
        right = token.begun + (max(token.io, rest) if overlapped else token.io + rest)
        expect(token_ms(curve, alone, speeds), right, "a token that only reads, ms", {}, 1e-6 * right)
