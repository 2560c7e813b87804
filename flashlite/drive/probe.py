"""What a drive can do: throughput by size of reads and reads in flight. (Paper: section 2.2, figure 2)"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flashlite.drive.aio import NativeAio
from flashlite.drive.backends import Backend, Serial, Threads
from flashlite.drive.direct import aligned_buffer
from flashlite.drive.flash import FlashFile, default_backend
from flashlite.drive.reads import LARGEST_READ
from flashlite.errors import FlashliteError

SIZES = (2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128)
FILE_BYTES = 256 * 2**20
SECONDS_A_POINT = 0.06
BATCHES = 3  # at least
BATCH_BYTES = 64 * 2**20
PASS_BYTES, PASS_RECORDS, PASSES = 2 * 2**20, 128, 60
PASS_READS = PASS_BYTES // LARGEST_READ
SMALLEST_FILE = 3 * PASS_BYTES  # in which a pass finds two places


@dataclass(frozen=True)
class Curve:
    """What a drive does, in 10^6 bytes a second.

    backend: how reads were submitted: aio, threads, or published
    alignment: the grid of direct reads, in bytes
    direct: whether reads went around the page cache
    sizes, depths: bytes of a read, and reads in flight, that were measured
    mb_s: mb_s[i][j] is the rate of random reads of sizes[i] bytes with depths[j] of them in flight
    sequential_mb_s: the rate of large reads in order
    batch_ms: milliseconds that a batch takes in addition to what its reads take at these rates
    """

    backend: str
    alignment: int
    direct: bool
    sizes: tuple[int, ...]
    depths: tuple[int, ...]
    mb_s: tuple[tuple[float, ...], ...]
    sequential_mb_s: float
    batch_ms: float = 0.0

    def rate(self, nbytes: float, depth: float) -> float:
        """Bytes a second for random reads of any size and depth, between the measured points in log-log scale."""
        columns = [_interpolate(depth, self.depths, row) for row in self.mb_s]
        return 1e6 * _interpolate(nbytes, self.sizes, columns)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Curve:
        """The curve of `to_json`. Raises FlashliteError if it is malformed."""
        try:
            rows = tuple(tuple(row) for row in data["mb_s"])
            grid = {"sizes": tuple(data["sizes"]), "depths": tuple(data["depths"]), "mb_s": rows}
            if not rows or {len(row) for row in rows} != {len(grid["depths"])} or len(rows) != len(grid["sizes"]):
                raise ValueError("its table is not one of all sizes and depths")
            if not all(number > 0 for row in (*rows, grid["sizes"], grid["depths"]) for number in row):
                raise ValueError("it holds a number that is not above 0")
            return cls(**{**data, **grid})
        except (KeyError, TypeError, ValueError) as error:
            raise FlashliteError(f"this is not a curve that `flashlite probe --json` wrote: {error}") from None


def _interpolate(at: float, known: Sequence[float], values: Sequence[float]) -> float:
    return math.exp(float(np.interp(math.log(max(at, 1e-9)), np.log(known), np.log(values))))


def probe(
    folder: Path | str = ".", sizes: Sequence[int] = SIZES, depths: Sequence[int] = DEPTHS,
    file_bytes: int = FILE_BYTES, seed: int = 0,
) -> Curve:  # fmt: skip
    """Measure the drive that a folder is on, with a file of random bytes that is deleted afterwards.

    sizes, depths: bytes of a read, and reads in flight, to measure
    file_bytes: size of the file
    seed: of the places that are read

    Raises FlashliteError if the file can't be written.
    """
    with scratch_file(Path(folder), file_bytes) as path:
        return probe_file(path, sizes, depths, seed)


def probe_file(path: Path, sizes: Sequence[int] = SIZES, depths: Sequence[int] = DEPTHS, seed: int = 0) -> Curve:
    """Measure a drive by reading a large file that is there already. Raises FlashliteError if it is too small."""
    rng, file = np.random.default_rng(seed), FlashFile(path)
    if file.size < SMALLEST_FILE:
        raise FlashliteError(f"{path} is too small to measure a drive with: it needs {SMALLEST_FILE} bytes")
    grid, native = file.alignment, isinstance(default_backend(), NativeAio)
    usable = tuple(size for size in sizes if size % grid == 0)
    sequential = sequential_mb_s(path)  # first: some drives answer the first touch of a block late
    rows = tuple(tuple(random_mb_s(path, size, depth, rng) for depth in depths) for size in usable)
    name = "aio" if native else "threads"
    curve = Curve(name, grid, file.direct, usable, tuple(depths), rows, sequential)
    return replace(curve, batch_ms=max(0.0, _pass_ms(file) - 1e3 * PASS_BYTES / curve.rate(LARGEST_READ, PASS_READS)))


def _pass_ms(file: FlashFile) -> float:
    """Milliseconds that a pass of a stream takes: it submits 1 MiB from each of two places, and waits for both."""
    halves = [half.reshape(PASS_RECORDS, -1) for half in aligned_buffer(2, PASS_BYTES // 2)]
    rows, size = np.arange(PASS_RECORDS), halves[0].shape[1]
    seconds: list[float] = []
    for begin in range(0, file.size // 2 - PASS_BYTES, PASS_BYTES)[:PASSES]:
        began = time.perf_counter()
        tickets = [
            file.submit(begin + i * (file.size // 8192 * 4096) + rows * size, size, half, rows)
            for i, half in enumerate(halves)
        ]
        for ticket in tickets:
            ticket.wait()
        seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds))


def check_folder(folder: Path, nbytes: int = FILE_BYTES) -> None:
    """Raise FlashliteError unless a folder is there and its drive has room for the file that is read."""
    try:
        free = shutil.disk_usage(folder).free if folder.is_dir() else None
    except OSError as error:
        raise FlashliteError(f"{folder} cannot be probed: {error.strerror}") from None
    if free is None:
        raise FlashliteError(f"{folder} cannot be probed: it is not a folder")
    if free < nbytes:
        raise FlashliteError(f"{folder} cannot be probed: this takes {nbytes} bytes, and its drive has {free} free")


def backend_of_depth(depth: int) -> Backend:
    """The backend that the engine uses, with this many reads in flight."""
    if isinstance(default_backend(), NativeAio):
        return NativeAio(depth)
    return Threads(depth) if depth > 1 else Serial()


def random_mb_s(path: Path, size: int, depth: int, rng: np.random.Generator) -> float:
    """Throughput of random reads, in MB/s: the median over batches."""
    file = FlashFile(path, backend_of_depth(depth))
    count = max(1, min(file.size // size // 2, BATCH_BYTES // size, max(64, 32 * depth)))
    # reads land in memory that is in use already, as in a pool: memory that is touched for the first time costs a sixth
    buffer, rows = aligned_buffer(2 * depth, size), np.arange(count) % (2 * depth)
    seconds: list[float] = []
    while len(seconds) < BATCHES or sum(seconds) < SECONDS_A_POINT:
        # a stride of at least two records keeps neighbours from being merged into one read
        offsets = np.sort(rng.choice(file.size // size // 2, count, replace=False)) * 2 * size
        began = time.perf_counter()
        file.read(offsets, size, buffer, rows)
        seconds.append(time.perf_counter() - began)
    return count * size / float(np.median(seconds)) / 1e6


def sequential_mb_s(path: Path) -> float:
    """Throughput of large reads in order, in MB/s: the median over batches."""
    file, size = FlashFile(path), 262144
    count = min(64, file.size // size)
    buffer, rows, seconds = aligned_buffer(count, size), np.arange(count), []
    for begin in range(0, file.size - count * size + 1, count * size):
        began = time.perf_counter()
        file.read(begin + rows * size, size, buffer, rows)
        seconds.append(time.perf_counter() - began)
    return count * size / float(np.median(seconds)) / 1e6


@contextlib.contextmanager
def scratch_file(folder: Path, nbytes: int) -> Iterator[Path]:
    """A file of random bytes in `folder`, deleted at the end. Raises FlashliteError if it can't be made."""
    try:
        handle, name = tempfile.mkstemp(prefix="flashlite-probe-", dir=folder)
    except OSError as error:
        raise FlashliteError(f"{folder} cannot be probed: {error.strerror}") from None
    path, rng = Path(name), np.random.default_rng(0)
    try:
        with os.fdopen(handle, "wb") as file:
            for _ in range(-(-nbytes // 2**24)):
                file.write(rng.bytes(2**24))
            file.flush()
            os.fsync(file.fileno())
        yield path
    except OSError as error:
        raise FlashliteError(f"{folder} cannot be probed: {error.strerror or error}") from None
    finally:
        path.unlink(missing_ok=True)
