"""The drive: whatever is asked of it arrives byte for byte, is counted, and what fails is named."""

from __future__ import annotations

import copy
import ctypes
import errno
import fcntl
import gc
import logging
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashlite.drive import aio as native
from flashlite.drive import backends, flash
from flashlite.drive.aio import NativeAio
from flashlite.drive.backends import Backend, Serial, Threads
from flashlite.drive.background import Background
from flashlite.drive.direct import aligned_buffer, direct_alignment
from flashlite.drive.flash import Counters, FlashFile
from flashlite.drive.jobs import Job
from flashlite.drive.reads import IOVEC, LARGEST_READ, MOST_PARTS, Reads
from flashlite.errors import FlashliteError, ReadError
from flashlite.storage.bundle import round_up

CONTENT = np.random.default_rng(0).integers(0, 256, 100 * 4096 + 777, np.uint8)
SIZE = len(CONTENT)
FILLED = 0xA5  # what buffers hold before
HANGS = 60  # seconds after which a thread is taken to hang
QUICK = settings(deadline=None, max_examples=60)
needs_o_direct = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")


def aio_or_skip(depth: int = 128) -> NativeAio:
    try:
        return NativeAio(depth)
    except OSError as error:
        pytest.skip(f"native AIO is refused here: {error}")


def make_or_skip(name: str) -> Backend:
    return aio_or_skip() if name == "aio" else {"threads": Threads, "serial": Serial}[name]()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drive") / "content"
    path.write_bytes(CONTENT.tobytes())
    return path


@pytest.fixture(scope="module", params=["aio", "threads", "serial"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return make_or_skip(request.param)


@pytest.fixture(scope="module", params=["aio", "threads"])
def shallow(request: pytest.FixtureRequest) -> Backend:
    """A backend that keeps few reads in flight."""
    return aio_or_skip(4) if request.param == "aio" else Threads(3)


@pytest.fixture
def aio() -> NativeAio:
    return aio_or_skip(4)


@pytest.fixture
def no_direct_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses O_DIRECT."""
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)


@dataclass(frozen=True)
class Request:
    """Records, and where in a buffer of their own they go; the buffer begins `start` bytes into a page."""

    records: list[tuple[int, int]]
    rows: list[int]
    column: int
    row_bytes: int
    start: int

    @property
    def offsets(self) -> np.ndarray:
        return np.array([offset for offset, _ in self.records], np.int64)

    @property
    def sizes(self) -> np.ndarray:
        return np.array([size for _, size in self.records], np.int64)

    def buffer(self) -> np.ndarray:
        height = max(self.rows, default=0) + 2
        memory = aligned_buffer(1, self.start + height * self.row_bytes)[0]
        memory[:] = FILLED
        return memory[self.start :].reshape(height, self.row_bytes)

    def expected(self) -> np.ndarray:
        buffer = self.buffer()
        for (offset, size), row in zip(self.records, self.rows, strict=True):
            buffer[row, self.column : self.column + size] = CONTENT[offset : offset + size]
        return buffer

    def on_grid(self, grid: int) -> bool:
        """Whether these can be read right where they go."""
        places = [self.start + self.column + row * self.row_bytes for row in self.rows]
        return all(n % grid == 0 for n in [*places, *self.offsets, *self.sizes])

    def counted(self, grid: int) -> tuple[int, int, int]:
        """Records, reads and bytes that these must take, by a plain loop."""
        spans = [(o, o + s) for o, s in self.records]
        if not self.on_grid(grid):  # then the blocks around neighbours are read, those that stand side by side in order
            spans = [(begin - begin % grid, -(-end // grid) * grid) for begin, end in joined(spans)]
        spans.sort(key=lambda span: span[0])
        return len(self.records), len(joined(spans)), sum(min(end, SIZE) - begin for begin, end in spans)


def joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Begins and ends, with each that begins where the one before it ends made one with it."""
    all_: list[tuple[int, int]] = []
    for begin, end in spans:
        if all_ and all_[-1][1] == begin:
            begin = all_.pop()[0]
        all_.append((begin, end))
    return all_


UNITS = st.sampled_from([1, 512, 4096])
LARGEST_RECORD = 8192


@st.composite
def record_lists(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Offsets and sizes on grids or off them, some adjacent, some the same, some at the end of the file."""
    offset_unit, size_unit = draw(UNITS), draw(UNITS)
    sizes = st.integers(0, LARGEST_RECORD // size_unit) | st.just(1)
    records: list[tuple[int, int]] = []
    for size in draw(st.lists(sizes.map(size_unit.__mul__), max_size=12)):
        last = (SIZE - size) // offset_unit
        offset = offset_unit * draw(st.integers(0, 8) | st.integers(0, last) | st.integers(last - 3, last))
        after_previous = sum(records[-1]) if records else SIZE
        adjacent = draw(st.booleans()) and after_previous + size <= SIZE
        records.append((after_previous if adjacent else offset, size))
    return draw(st.permutations(records))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Records into any rows and columns of a buffer that lies on a grid or not."""
    records, unit = draw(record_lists()), draw(UNITS)
    rows = draw(st.lists(st.integers(0, 30), min_size=len(records), max_size=len(records), unique=True))
    column, start, spare = (unit * draw(st.integers(0, 2)) for _ in range(3))
    widest = max((size for _, size in records), default=0)
    return Request(records, rows, column, max(1, column + round_up(widest, unit) + spare), start)


def submit(file: FlashFile, request: Request, buffer: np.ndarray) -> flash.Ticket:
    return file.submit(request.offsets, request.sizes, buffer[:, request.column :], np.array(request.rows, np.int64))


def read_one(file: FlashFile, offset: int, size: int, row: int = 0, column: int = 0) -> np.ndarray:
    """Read a record to a buffer of two rows of a page."""
    buffer = aligned_buffer(2, 4096)
    file.read(np.array([offset]), size, buffer[:, column:], np.array([row]))
    return buffer


def every_other_block(file: FlashFile) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of records that no read can join, in no order, and a buffer with a row for each."""
    size = max(512, file.alignment)
    offsets = 2 * size * np.random.default_rng(1).permutation(SIZE // (2 * size)).astype(np.int64)
    buffer = aligned_buffer(len(offsets), size)
    buffer[:] = FILLED
    return offsets, buffer


def assert_read(buffer: np.ndarray, offsets: np.ndarray) -> None:
    """Row i must hold the file's bytes from offsets[i]."""
    assert np.array_equal(buffer, CONTENT[offsets[:, None] + np.arange(buffer.shape[1])])


# What arrives


@QUICK
@given(request_=requests(), grids=st.sampled_from([1, 8]))
def test_records_arrive_byte_for_byte_and_are_counted(
    path: Path, backend: Backend, request_: Request, grids: int
) -> None:
    file, buffer = FlashFile(path, backend), request_.buffer()
    file.alignment = min(4096, grids * file.alignment)
    submit(file, request_, buffer).wait()
    assert np.array_equal(buffer, request_.expected())
    counters = file.counters
    assert (counters.records, counters.reads, counters.bytes) == request_.counted(file.alignment)


@settings(QUICK, max_examples=30)
@given(several=st.lists(requests(), min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_tickets_under_way_at_once_can_be_awaited_in_any_order(
    path: Path, backend: Backend, several: list[Request], seed: int
) -> None:
    file, buffers = FlashFile(path, backend), [request.buffer() for request in several]
    tickets = [submit(file, request, buffer) for request, buffer in zip(several, buffers, strict=True)]
    for i in np.random.default_rng(seed).permutation(len(tickets)):
        tickets[i].wait()
        assert np.array_equal(buffers[i], several[i].expected())
    counted = np.sum([request.counted(file.alignment) for request in several], axis=0)
    assert [file.counters.records, file.counters.reads, file.counters.bytes] == counted.tolist()


def test_one_size_may_be_given_for_all_records(path: Path, backend: Backend) -> None:
    file, buffer = FlashFile(path, backend), aligned_buffer(2, 4096)
    file.read(np.array([8192, 0]), 4096, buffer, np.array([0, 1]))
    assert_read(buffer, np.array([8192, 0]))


def test_more_reads_than_the_backend_keeps_in_flight(path: Path, shallow: Backend) -> None:
    file = FlashFile(path, shallow)
    offsets, buffer = every_other_block(file)
    for _ in range(3):
        buffer[:] = FILLED
        file.read(offsets, buffer.shape[1], buffer, np.arange(len(offsets)))
        assert_read(buffer, offsets)
    assert file.counters.reads == 3 * len(offsets) > shallow.depth


def test_two_files_may_share_a_backend(path: Path, backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(CONTENT[::-1].tobytes())
    files = FlashFile(path, backend), FlashFile(tmp_path / "other", backend)
    buffers = [aligned_buffer(1, 4096) for _ in files]
    tickets = [
        file.submit(np.array([4096]), 4096, out, np.array([0])) for file, out in zip(files, buffers, strict=True)
    ]
    for ticket in reversed(tickets):
        ticket.wait()
    assert_read(buffers[0], np.array([4096]))
    assert np.array_equal(buffers[1][0], CONTENT[::-1][4096:8192])


def test_waiting_twice_counts_once(path: Path, backend: Backend) -> None:
    file = FlashFile(path, backend)
    ticket = file.submit(np.array([0]), 4096, aligned_buffer(1, 4096), np.array([0]))
    ticket.wait()
    ticket.wait()
    assert (file.counters.records, file.counters.bytes) == (1, 4096)


def test_no_records_take_no_read(path: Path, backend: Backend) -> None:
    file, buffer = FlashFile(path, backend), aligned_buffer(0, 4096)
    none = np.zeros(0, np.int64)
    file.read(none, 4096, buffer, none)
    file.read(none, none, buffer, none)
    assert (file.counters.records, file.counters.reads, file.counters.bytes) == (0, 0, 0)


def test_empty_file_can_be_opened(tmp_path: Path, backend: Backend) -> None:
    (tmp_path / "empty").touch()
    file, none = FlashFile(tmp_path / "empty", backend), np.zeros(0, np.int64)
    file.read(none, 1, aligned_buffer(1, 1), none)
    with pytest.raises(ReadError, match="not inside the file of 0 bytes"):
        read_one(file, 0, 1)


# What is counted


def test_adjacent_records_are_merged_up_to_the_largest_read(path: Path, backend: Backend) -> None:
    file = FlashFile(path, backend)
    unit = max(512, file.alignment)
    n = SIZE // unit
    buffer = aligned_buffer(n, unit)
    file.read(unit * np.arange(n), unit, buffer, np.arange(n))
    assert_read(buffer, unit * np.arange(n))
    assert (file.counters.records, file.counters.bytes) == (n, n * unit)
    assert file.counters.reads == -(-n // (LARGEST_READ // unit)) > 1


def test_counters_can_be_subtracted() -> None:
    assert Counters(7, 5, 300) - Counters(3, 4, 100) == Counters(4, 1, 200)


# What a ticket keeps


def test_dropped_ticket_writes_nothing_outside_its_rows_and_disturbs_no_other(path: Path, backend: Backend) -> None:
    file = FlashFile(path, backend)
    offsets, buffer = every_other_block(file)
    size, n = buffer.shape[1], len(offsets)
    for column in (0, 1):  # on the grid and off it
        dropped = np.full((n + 2, size + 1), FILLED, np.uint8)
        file.submit(offsets, size, dropped[:, column:], np.arange(1, n + 1))
        file.read(offsets, size, buffer, np.arange(n))
        assert_read(buffer, offsets)
        assert (dropped[[0, n + 1]] == FILLED).all()


def test_dropped_ticket_leaves_its_reads_to_the_batch(path: Path) -> None:
    left = []

    class Watched(Serial):
        class _Batch(Serial._Batch):
            def let_go(self) -> Sequence[Job]:
                left.append(True)
                return super().let_go()

    ticket = FlashFile(path, Watched()).submit(np.array([0]), 4096, aligned_buffer(1, 4096), np.array([0]))
    assert not left
    del ticket
    gc.collect()
    assert left


@pytest.mark.parametrize("wrap", [lambda threads: threads, Background], ids=["threads", "background"])
def test_reads_of_a_dropped_ticket_are_among_those_that_are_finished(
    wrap: Callable[[Backend], Backend], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise they would land later, where other records lie by then."""
    read_one, begun = backends._read_one, threading.Event()

    def read_late(fd: int, reads: Reads, i: int) -> int:
        begun.wait(HANGS)
        return read_one(fd, reads, i)

    monkeypatch.setattr(backends, "_read_one", read_late)
    file, buffer = FlashFile(path, wrap(Threads(2))), aligned_buffer(3, 4096)
    file.submit(np.array([0, 8192, 16384]), 4096, buffer, np.arange(3))
    assert not file.under_way
    threading.Timer(0.1, begun.set).start()
    file.finish_reads()
    assert buffer.tobytes() == b"".join(CONTENT[i : i + 4096].tobytes() for i in (0, 8192, 16384))
    assert not file.left


@pytest.mark.parametrize("offset", [0, 3])
def test_ticket_that_its_own_reading_thread_collects_keeps_file_and_memory(offset: int, path: Path) -> None:
    """The garbage collector runs in any thread. One that waited for itself there would wait for ever, and with it all
    later collections of the process."""
    dropped, landed = threading.Event(), queue.SimpleQueue[bytes]()

    class Collecting(Serial):
        class _Batch(Serial._Batch):
            def wait(self) -> np.ndarray:
                dropped.wait(HANGS)
                gc.collect()
                results = super().wait()
                landed.put(bytes(self._reads.alive[1].reshape(-1)[offset % 512 :][:16]))
                return results

    expected = path.read_bytes()[offset:][:16]
    file = FlashFile(path, Background(Collecting()))
    offsets = np.array([offset, 3 * 4096 + offset])  # two reads, more than a backend without depth takes at once
    ticket = file.submit(offsets, 4096, aligned_buffer(2, 4096), np.arange(2))
    ticket.itself = ticket  # so that only the garbage collector finds it
    del ticket, file
    dropped.set()
    assert landed.get(timeout=HANGS) == expected


@pytest.mark.parametrize("offset", [0, 3])
def test_ticket_keeps_its_destination_alive(offset: int, path: Path, backend: Backend) -> None:
    buffer = aligned_buffer(1, 4096)
    ticket = FlashFile(path, backend).submit(np.array([offset]), 4096, buffer, np.array([0]))
    alive = weakref.ref(buffer)
    del buffer
    gc.collect()
    ticket.wait()
    assert_read(alive(), np.array([offset]))


# What fails


@pytest.mark.parametrize(
    ("offset", "size"),
    [(SIZE, 1), (SIZE - 1, 2), (SIZE - 512, 1024), (10 * SIZE, 512), (-1, 2), (-512, 512), (0, -1), (2**62, 512)],
)
def test_record_outside_the_file_is_named(offset: int, size: int, path: Path, backend: Backend) -> None:
    file = FlashFile(path, backend)
    with pytest.raises(ReadError, match=f"{path}: {size} bytes at offset {offset} are not inside the file") as error:
        read_one(file, offset, size)
    assert "\n" not in str(error.value)


def test_one_record_outside_the_file_among_others_is_named(path: Path, backend: Backend) -> None:
    file = FlashFile(path, backend)
    with pytest.raises(ReadError, match=f"512 bytes at offset {SIZE} "):
        file.read(np.array([0, SIZE, 512]), 512, aligned_buffer(3, 512), np.arange(3))


@pytest.mark.parametrize(
    ("size", "row", "column"), [(512, 2, 0), (512, -1, 0), (4097, 0, 0), (512, 0, 3585), (2, 0, -1), (1, 10**9, 0)]
)
def test_record_that_does_not_fit_the_buffer_is_refused(
    size: int, row: int, column: int, path: Path, backend: Backend
) -> None:
    file = FlashFile(path, backend)
    with pytest.raises(ReadError, match=f"{path}: records of {size} bytes don't fit the buffer") as error:
        read_one(file, 0, size, row, column)
    assert "\n" not in str(error.value)
    assert file.counters == Counters()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=f"{tmp_path}/absent cannot be opened: No such file or directory$"):
        FlashFile(tmp_path / "absent")


def test_directory_is_named(tmp_path: Path, backend: Backend) -> None:
    with pytest.raises(ReadError, match=f"{tmp_path} cannot be opened: it is a folder"):
        read_one(FlashFile(tmp_path, backend), 0, 1)


def test_a_file_that_is_dropped_with_reads_under_way_is_closed_after_them(
    path: Path, backend: Backend, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(CONTENT[::-1].tobytes())
    file = FlashFile(path, backend)
    offsets, buffer = every_other_block(file)
    ticket = file.submit(offsets, buffer.shape[1], buffer, np.arange(len(offsets)))
    del file
    other = FlashFile(tmp_path / "other", backend)  # would get the number of a closed file
    ticket.wait()
    assert_read(buffer, offsets)
    assert other.fd >= 0


def test_columns_that_are_not_contiguous_are_refused(path: Path, backend: Backend) -> None:
    with pytest.raises(ReadError, match="don't fit the buffer"):
        FlashFile(path, backend).read(np.array([0]), 512, aligned_buffer(2, 4096)[:, ::2], np.array([0]))


@pytest.mark.parametrize("offset", [0, 4096, 4099])
def test_file_truncated_after_opening_is_a_short_read(offset: int, tmp_path: Path, backend: Backend) -> None:
    path = tmp_path / "shrinking"
    path.write_bytes(CONTENT[:16384].tobytes())
    file = FlashFile(path, backend)
    os.truncate(path, 4096 if offset else 2048)
    begin = offset - offset % file.alignment
    with pytest.raises(ReadError, match=rf"{path}: read at offset {begin} failed: only \d+ of \d+ bytes"):
        read_one(file, offset, 4096)


def test_waiting_again_for_a_failed_read_fails_again(tmp_path: Path, backend: Backend) -> None:
    path = tmp_path / "shrinking"
    path.write_bytes(CONTENT[:16384].tobytes())
    file = FlashFile(path, backend)
    os.truncate(path, 0)
    ticket = file.submit(np.array([4096]), 4096, aligned_buffer(1, 4096), np.array([0]))
    for _ in range(2):
        with pytest.raises(ReadError, match="at offset 4096 failed: only 0 of 4096"):
            ticket.wait()


def test_failed_read_leaves_the_backend_usable(path: Path, tmp_path: Path, shallow: Backend) -> None:
    (tmp_path / "shrinking").write_bytes(CONTENT.tobytes())
    file = FlashFile(tmp_path / "shrinking", shallow)
    offsets, buffer = every_other_block(file)
    os.truncate(file.path, 0)
    for _ in range(3):
        with pytest.raises(ReadError, match="only 0 of"):
            file.read(offsets, buffer.shape[1], buffer, np.arange(len(offsets)))
    FlashFile(path, shallow).read(offsets, buffer.shape[1], buffer, np.arange(len(offsets)))
    assert_read(buffer, offsets)


def test_read_error_is_an_oserror_of_this_library() -> None:
    assert issubclass(ReadError, OSError)
    assert issubclass(ReadError, FlashliteError)


def test_open_file_cannot_be_copied(path: Path) -> None:
    file = FlashFile(path, Serial())
    with pytest.raises(ReadError, match="can't be copied"):
        copy.copy(file)


def test_file_is_closed_when_it_is_dropped(path: Path) -> None:
    file = FlashFile(path, Serial())
    fd = file.fd
    del file
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# What the system refuses


@needs_o_direct
def test_direct_file_goes_past_the_page_cache(path: Path) -> None:
    file = FlashFile(path, Serial())
    assert bool(fcntl.fcntl(file.fd, fcntl.F_GETFL) & os.O_DIRECT) == file.direct


@needs_o_direct
@pytest.mark.usefixtures("no_direct_reads")
def test_file_system_without_direct_reads_is_read_buffered_and_announced(
    path: Path, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    file, records = FlashFile(path, backend), 2 * MOST_PARTS + 5
    assert (file.direct, file.alignment) == (False, 1)
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert f"{path}: reads are buffered" in caplog.text
    buffer = np.zeros((records, 7), np.uint8)
    file.read(3 + 7 * np.arange(records), 7, buffer, np.arange(records))
    assert_read(buffer, 3 + 7 * np.arange(records))
    assert (file.counters.reads, file.counters.bytes) == (3, 7 * records)


def test_threads_read_where_native_aio_is_refused_and_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> NativeAio:
        raise OSError(errno.EPERM, "io_setup: Operation not permitted")

    monkeypatch.setattr(flash, "NativeAio", refuse)
    backend = flash.default_backend.__wrapped__()
    assert (backend.name, backend.depth) == ("threads", 32)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "reading with 32 threads, because native AIO is refused" in caplog.messages[0]
    assert "io_setup: Operation not permitted" in caplog.messages[0]


def test_native_aio_is_the_default_where_it_is_offered(caplog: pytest.LogCaptureFixture) -> None:
    aio_or_skip()
    assert flash.default_backend.__wrapped__().name == "aio"
    assert not caplog.records


def test_files_share_the_default_backend(path: Path) -> None:
    assert FlashFile(path).backend is FlashFile(path).backend


def test_native_aio_is_refused_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="Linux"):
        NativeAio()


class FailingLibc:
    """The C library, whose calls first fail with these error numbers."""

    def __init__(self, *failures: int) -> None:
        self._real, self.failures = backends.libc, list(failures)

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*args: Any) -> int:
            if self.failures:
                ctypes.set_errno(self.failures.pop(0))
                return -1
            return getattr(self._real, name)(*args)

        return call


@pytest.mark.parametrize("make", [Serial, Threads])
def test_interrupted_read_is_begun_again(make: type[Backend], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libc = FailingLibc(errno.EINTR, errno.EINTR)
    monkeypatch.setattr(backends, "libc", libc)
    buffer = read_one(FlashFile(path, make()), 4096, 4096)
    assert_read(buffer[:1], np.array([4096]))
    assert not libc.failures


@pytest.mark.parametrize("make", [Serial, Threads])
def test_failing_drive_is_named(make: type[Backend], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FlashFile(path, make())
    monkeypatch.setattr(backends, "libc", FailingLibc(errno.EIO))
    with pytest.raises(ReadError, match=f"{path}: read at offset 4096 failed: Input/output error$"):
        read_one(file, 4096, 4096)
    assert_read(read_one(file, 4096, 4096)[:1], np.array([4096]))


def test_interrupted_native_aio_is_begun_again(path: Path, aio: NativeAio, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FlashFile(path, aio)
    libc = FailingLibc(errno.EINTR, errno.EINTR)
    monkeypatch.setattr(native, "libc", libc)
    assert_read(read_one(file, 4096, 4096)[:1], np.array([4096]))
    assert not libc.failures


def test_native_aio_takes_its_queues_back(path: Path, aio: NativeAio, tmp_path: Path) -> None:
    (tmp_path / "shrinking").write_bytes(CONTENT.tobytes())
    shrinking, file, one = FlashFile(tmp_path / "shrinking", aio), FlashFile(path, aio), np.array([0])
    os.truncate(shrinking.path, 0)
    for _ in range(3):
        with pytest.raises(ReadError):
            read_one(shrinking, 0, 4096)
        file.submit(one, 4096, aligned_buffer(1, 4096), one)  # dropped
        tickets = [file.submit(one, 4096, aligned_buffer(1, 4096), one) for _ in range(2)]
        for ticket in tickets:
            ticket.wait()
        assert len(aio._all) == len(aio.idle) == 2


class ReluctantKernel:
    """System calls, of which io_submit takes at most `most` reads at a time.

    busy: how often it takes none because others are in flight; refused: which read, by its place in a batch, fails.
    """

    def __init__(self, aio: NativeAio, most: int, busy: int = 0, refused: int = -1) -> None:
        self._aio, self._most, self._busy, self._refused = aio, most, busy, refused
        self._real, self._submitted, self._in_flight = native._syscall, 0, 0

    def __call__(self, number: int, *args: Any) -> int:
        if number == self._aio.iosubmit:
            taken = self._submit(*args)
            self._submitted += taken if taken >= 0 else taken == -errno.EIO
            self._in_flight += max(taken, 0)
            return taken
        result = self._real(number, *args)
        if number == self._aio.getevents:
            self._in_flight -= result
        return result

    def _submit(self, queue: ctypes.c_ulong, count: ctypes.c_long, blocks: ctypes.c_void_p) -> int:
        if self._in_flight and self._busy:
            self._busy -= 1
            return -errno.EAGAIN
        if self._submitted == self._refused:
            return -errno.EIO
        return self._real(self._aio.iosubmit, queue, ctypes.c_long(min(count.value, self._most)), blocks)


@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("busy", [0, 1, 5, 1000])
def test_native_aio_submits_again_what_a_busy_kernel_did_not_take(
    most: int, busy: int, path: Path, aio: NativeAio, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FlashFile(path, aio)
    offsets, buffer = every_other_block(file)
    monkeypatch.setattr(native, "_syscall", ReluctantKernel(aio, most, busy))
    file.read(offsets, buffer.shape[1], buffer, np.arange(len(offsets)))
    assert_read(buffer, offsets)
    assert file.counters.reads == len(offsets)


def test_native_aio_names_a_read_that_the_kernel_refuses_and_ends_the_others(
    path: Path, aio: NativeAio, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FlashFile(path, aio)
    offsets, buffer = every_other_block(file)
    monkeypatch.setattr(native, "_syscall", ReluctantKernel(aio, most=1, refused=2))
    third = np.sort(offsets)[2]
    with pytest.raises(ReadError, match=f"{path}: read at offset {third} failed: Input/output error$"):
        file.read(offsets, buffer.shape[1], buffer, np.arange(len(offsets)))
    assert_read(buffer[offsets != third], offsets[offsets != third])
    assert (buffer[offsets == third] == FILLED).all()


def test_native_aio_gives_up_on_a_kernel_that_takes_nothing(
    path: Path, aio: NativeAio, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FlashFile(path, aio)
    real = native._syscall
    with monkeypatch.context() as patch:
        patch.setattr(native, "_syscall", lambda n, *args: -errno.EAGAIN if n == aio.iosubmit else real(n, *args))
        with pytest.raises(ReadError, match="read at offset 0 failed: Resource temporarily unavailable"):
            read_one(file, 0, 4096)
    assert_read(read_one(file, 0, 4096)[:1], np.array([0]))


def test_batch_gives_minus_the_error_number_of_a_failed_read(backend: Backend) -> None:
    never_opened, one = 2**30, np.ones(1, np.int64)
    batch = backend.submit(never_opened, Reads(1, one, one, one - 1, one, np.zeros(1, IOVEC)))
    assert batch.wait().tolist() == [-errno.EBADF]


# Memory and the grid


@pytest.mark.parametrize(("rows", "row_bytes"), [(0, 4096), (1, 1), (3, 4096), (7, 1000), (5, 0), (300, 4096)])
def test_buffers_are_zeroed_and_begin_on_a_page(rows: int, row_bytes: int) -> None:
    buffer = aligned_buffer(rows, row_bytes)
    assert (buffer.shape, buffer.dtype) == ((rows, row_bytes), np.uint8)
    assert buffer.ctypes.data % 4096 == 0
    assert not buffer.any()
    buffer[:] = 1
    assert buffer.all()


def test_grid_is_a_power_of_two(path: Path, tmp_path: Path) -> None:
    for place in (path, path.parent, tmp_path / "absent"):
        grid = direct_alignment(place)
        assert grid > 0
        assert grid & (grid - 1) == 0


def test_grid_is_a_page_where_the_system_does_not_tell(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert direct_alignment(path) == 4096
