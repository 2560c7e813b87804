"""What goes wrong while weights are read ends in the dense model's tokens or in one clear error; no trace is left."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, add_predictor, make_model, save_checkpoint, smallest_budget
from faults import ERRORS, INTERRUPTS, KERNEL_ERRORS, KERNEL_NUISANCES, KINDS, Fault, Faulty, FaultyKernel, Plan
from transformers import OPTForCausalLM

import flashlite
from flashlite.bench.decoding import forced
from flashlite.cli import main as cli
from flashlite.drive import aio as native
from flashlite.drive import backends, direct, flash
from flashlite.drive.aio import PAUSES, NativeAio
from flashlite.drive.backends import Backend, Batch, Serial, Threads
from flashlite.drive.background import Background
from flashlite.drive.jobs import Job
from flashlite.drive.reads import Reads
from flashlite.engine import overlap
from flashlite.engine.predictor_file import PredictorSet
from flashlite.engine.stages import LADDER
from flashlite.errors import ReadError
from flashlite.storage.neurons import wait_all
from flashlite.storage.store import PREDICTOR, RESIDENT, Store, ffn_file

AMPLE, TIGHT = "2MB", "tight"  # room for every neuron; for so few that some are streamed for every token
IDS = torch.randint(3, TINY["vocab_size"], (10,), generator=torch.Generator().manual_seed(5)).tolist()
PROMPT, TOKENS = IDS[:7], IDS[7:]  # more than the window, so that it is streamed, and what is decoded after it
Expected = tuple[list[int], torch.Tensor]


def make(name: str) -> Backend:
    if name != "aio":
        return {"threads": lambda: Threads(3), "serial": Serial, "background": lambda: Background(Serial())}[name]()
    try:
        return NativeAio(8)  # fewer than a batch has
    except OSError as error:
        pytest.skip(f"native AIO is refused here: {error}")


BACKENDS = ("aio", "threads", "serial", "background")


@pytest.fixture(scope="module")
def dense() -> OPTForCausalLM:
    """So few neurons that a case takes milliseconds."""
    return make_model(ffn_dim=64)


@pytest.fixture(scope="module")
def store(dense: OPTForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("faults")
    packed = flashlite.pack(save_checkpoint(dense, folder / "checkpoint"), folder / "store")
    add_predictor(packed, dense)
    return packed


@pytest.fixture(scope="module")
def expected(dense: OPTForCausalLM) -> Expected:
    """What the dense model chooses, and its logits."""
    found = forced(dense, PROMPT, TOKENS)
    return found.chosen, found.logits


def load_on(store: Store, stage: int, wrap: Callable[[Backend], Backend], backend: str, **options: Any):
    """A model whose every read goes through `wrap`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "default_backend", lambda: wrap(make(backend)))
        ahead = backend if backend != "background" else "serial"
        patch.setattr(overlap, "background_backend", lambda: wrap(Background(make(ahead))))
        return load(store, stage, **options)


def load(store: Store | Path, stage: int, budget: str = AMPLE, **options: Any) -> OPTForCausalLM:
    nbytes = smallest_budget(store, stage, "oracle") + 5_000 if budget == TIGHT else budget
    return flashlite.load(store, stage=stage, predictor="oracle", dram_budget=nbytes, **options)


def write(model: OPTForCausalLM, expected: Expected) -> None:
    """Decode, and assert that each token is the dense model's; NaN anywhere would show."""
    chosen, logits = expected
    found = forced(model, PROMPT, TOKENS)
    assert found.chosen == chosen
    torch.testing.assert_close(found.logits, logits, atol=1e-4, rtol=0)


# Behind the interface of backends

PLACES = 1  # for each stage, backend, budget and kind
CASES = len(LADDER) * len(BACKENDS) * 2 * len(KINDS) * PLACES


def strike(model: OPTForCausalLM, plan: Plan, fault: Fault, expected: Expected) -> None:
    """One case: the fault is met once and is one error, or none where reads are only late; then all is well again."""
    met, caught = len(plan.hits), None
    plan.arm(fault)
    try:
        write(model, expected)
    except (ReadError, KeyboardInterrupt) as error:
        caught = error  # kept, as a notebook keeps the last one, with all that its frames hold
    assert len(plan.hits) == met + 1
    path, offset = plan.hits[-1]
    if fault.kind in ERRORS:
        first = "" if fault.kind == "refused" else f"{offset} failed: "
        assert isinstance(caught, ReadError)
        assert f"{path}: read at offset {first}" in str(caught)
        assert "\n" not in str(caught)
    else:
        assert type(caught) is (KeyboardInterrupt if fault.kind in INTERRUPTS else type(None))
    plan.arm(None)
    write(model, expected)
    engine = model.flash
    assert not any(
        file.file.under_way for file in (engine.file, engine.resident, engine.early_file) if file is not None
    )
    del caught  # the oracle's reads have a buffer of their own, and live as long as that
    assert plan.under_way == 0


def sweep(store: Store, stage: int, backend: str, seed: int, places: int, expected: Expected) -> int:
    """Cases of one stage and backend, all on two models. Returns how many there were."""
    rng, cases = np.random.default_rng([seed, stage, BACKENDS.index(backend)]), 0
    for budget in (AMPLE, TIGHT):
        plan = Plan()
        model = load_on(store, stage, lambda inner, plan=plan: Faulty(inner, plan), backend, budget=budget)
        plan.arm(None)
        write(model, expected)
        batches = plan.batches
        for kind in KINDS:
            for place in rng.choice(batches, places):
                strike(model, plan, Fault(kind, int(place) + 1, rng.random()), expected)
                cases += 1
        assert len(plan.hits) == len(KINDS) * places
    return cases


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_a_fault_is_one_error_or_none_and_leaves_no_trace(
    store: Store, expected: Expected, stage: int, backend: str
) -> None:
    cases = sweep(store, stage, backend, 0, PLACES, expected)
    assert cases * len(LADDER) * len(BACKENDS) == CASES >= 300


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("stage", [2, 3, 4, 5, 6])
def test_a_fault_in_a_layer_that_is_called_by_itself_leaves_no_trace(store: Store, stage: int, kind: str) -> None:
    """Outside of the model's calls nobody else makes good what was broken off."""
    plan = Plan()
    model = load_on(store, stage, lambda inner: Faulty(inner, plan), "serial")
    layer, x = model.flash.ffns[2], torch.randn(1, store.shape.d_model, generator=torch.Generator().manual_seed(1))
    wanted = layer(x)
    layer.forget()
    plan.arm(Fault(kind, 2, 1.0))  # the first batch is the oracle's
    with pytest.raises(ReadError):
        layer(x)
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("stage", [1, 5, 6])
def test_a_fault_while_a_model_is_loaded(store: Store, expected: Expected, stage: int, kind: str) -> None:
    """Each batch of the resident weights in turn."""
    plan = Plan()
    load_on(store, stage, lambda inner: Faulty(inner, plan), "aio")
    batches = plan.batches
    assert batches >= store.layers + 1
    for batch in range(1, batches + 1):
        plan.arm(Fault(kind, batch, 0.5))
        with pytest.raises(ReadError, match=r"resident.safetensors: read at offset \d+ failed"):
            load_on(store, stage, lambda inner: Faulty(inner, plan), "aio")
    assert len(plan.hits) == batches
    plan.arm(None)
    write(load_on(store, stage, lambda inner: Faulty(inner, plan), "aio"), expected)


# Behind the system calls of native AIO


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it was slept, instead of sleeping."""
    slept: list[float] = []
    monkeypatch.setattr(native.time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("nth", [1, 2, 7])
@pytest.mark.parametrize("kind", [*KERNEL_NUISANCES, *KERNEL_ERRORS])
@pytest.mark.parametrize("stage", [0, 1, 3, 5, 6])
def test_a_kernel_with_its_own_ways(
    store: Store, expected: Expected, stage: int, kind: str, nth: int, monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
) -> None:  # fmt: skip
    kernel = FaultyKernel(make("aio"))
    model = load_on(store, stage, lambda inner: inner, "aio")
    monkeypatch.setattr(native, "_syscall", kernel if kind != "EINTR" else native._syscall)
    monkeypatch.setattr(native, "libc", kernel if kind == "EINTR" else native.libc)
    kernel.arm(kind, nth)
    if kind in KERNEL_ERRORS:
        reason = {
            "exhausted": "the system's AIO is exhausted",
            "EINVAL": "Invalid arg",
            "lost": "io_getevents: Invalid",
        }
        with pytest.raises(ReadError, match=rf"safetensors: read at offset \d+ failed: .*{reason[kind]}") as error:
            write(model, expected)
        assert "\n" not in str(error.value)
    else:
        write(model, expected)
    assert kernel.met >= 1
    assert pauses in ([], [*PAUSES, 0.0]) or kind in ("busy", "exhausted")
    kernel.arm("", 1)
    write(model, expected)


def test_a_kernel_without_room_is_asked_for_a_second_and_then_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    """All reads of the batch fail together: waiting for each of them would take minutes."""
    aio = make("aio")
    kernel = FaultyKernel(aio)
    monkeypatch.setattr(native, "_syscall", kernel)
    file = store.open_ffn("bundled", aio)
    kernel.arm("exhausted", 1)
    offsets = 2 * file.alignment * np.arange(20)
    with pytest.raises(ReadError, match="offset 0 failed: Resource temporarily unavailable: the system's AIO"):
        file.read(offsets, file.alignment, direct.aligned_buffer(20, file.alignment), np.arange(20))
    assert pauses == list(PAUSES)
    assert sum(pauses) == pytest.approx(1.023)
    assert all(a < b for a, b in pairwise(PAUSES))
    assert len(aio.idle) == len(aio._all) == 1


# Interrupts


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one in a destructor
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stage", [0, 1, 3, 5, 6])
def test_real_interrupts_leave_no_trace(store: Store, expected: Expected, stage: int, backend: str) -> None:
    assert interrupt(load_on(store, stage, lambda inner: inner, backend), expected, times=8, seed=stage) == 8


def interrupt(model: OPTForCausalLM, expected: Expected, times: int, seed: int) -> int:
    """Break the model off at random moments, as Ctrl-C does, each time followed by a text that must be right."""
    rng, met, errors = np.random.default_rng(seed), 0, []

    def ring(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        while met < times:
            try:
                while True:  # Python ignores an interrupt that comes while an object is deleted
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 2e-2))
                    forced(model, PROMPT, TOKENS)
            except KeyboardInterrupt as error:
                errors.append(error)
                met += 1
            write(model, expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return met


def test_waiting_for_several_ends_those_behind_a_failed_one_too(store: Store) -> None:
    plan, row = Plan(), np.zeros(1, np.int64)
    file = store.open_ffn("bundled", Faulty(Serial(), plan))
    plan.arm(Fault("eio", 1, 0))
    tickets = [file.submit(row, file.alignment, direct.aligned_buffer(1, file.alignment), row) for _ in range(3)]
    with pytest.raises(ReadError, match="Input/output error"):
        wait_all(tickets)
    assert plan.under_way == 0


def test_an_interrupted_wait_can_be_repeated(store: Store) -> None:
    plan, rows = Plan(), np.arange(4)
    file = store.open_ffn("bundled", Faulty(Serial(), plan))
    plan.arm(Fault("interrupted wait", 1, 0))
    buffer = direct.aligned_buffer(4, file.alignment)
    ticket = file.submit(2 * file.alignment * rows, file.alignment, buffer, rows)
    with pytest.raises(KeyboardInterrupt):
        ticket.wait()
    assert list(file.under_way) == [ticket]
    ticket.wait()
    assert list(file.under_way) == []
    content = (store.path / ffn_file("bundled")).read_bytes()
    for row in rows:
        assert buffer[row].tobytes() == content[2 * row * file.alignment :][: file.alignment]


class Slow(Serial):
    """Says when its first read begins; `ended` are the batches that were carried out."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), 0

    def submit(self, fd: int, reads: Reads) -> Batch:
        self.begun.set()
        time.sleep(0.02)
        batch = super().submit(fd, reads)
        self.ended += 1
        return batch


def test_background_interrupted_as_it_begins_leaves_no_read_under_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has the reads already, but nobody has the batch."""
    slow, rows = Slow(), np.arange(2)  # two reads, more than the backend takes at once
    backend = Background(slow)
    submit = backend._thread.submit

    def interrupted(job: Job) -> None:
        submit(job)
        assert slow.begun.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(backend._thread, "submit", interrupted)
    file = store.open_ffn("bundled", backend)
    with pytest.raises(KeyboardInterrupt):
        file.read(2 * file.alignment * rows, file.alignment, direct.aligned_buffer(2, file.alignment), rows)
    assert slow.ended == 1


def test_threads_interrupted_as_they_begin_leave_no_read_under_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread reads already, for the other one there is nothing to do any more."""
    backend, rows, begun, ended = Threads(2), np.arange(2), threading.Event(), []
    file, read = store.open_ffn("bundled", backend), backends._read_one

    def slow(fd: int, reads: Reads, i: int) -> int:
        if fd == file.fd:  # another file's reads are no concern of this test
            begun.set()
            time.sleep(0.02)
            ended.append(i)
        return read(fd, reads, i)

    def interrupted(job: Job, submit: Callable[[Job], None] = backend._workers.submit) -> None:
        if begun.is_set():
            raise KeyboardInterrupt
        submit(job)
        assert begun.wait(20)

    monkeypatch.setattr(backends, "_read_one", slow)
    monkeypatch.setattr(backend._workers, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.read(2 * file.alignment * rows, file.alignment, direct.aligned_buffer(2, file.alignment), rows)
    assert ended == [0]


def test_a_read_interrupted_just_after_it_began_can_be_waited_for(store: Store) -> None:
    file, rows = store.open_ffn("bundled", Serial()), np.arange(4)
    buffer = direct.aligned_buffer(4, file.alignment)

    def interrupt(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is flash.Ticket.__init__.__code__ and event == "return":
            raise KeyboardInterrupt
        return interrupt

    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt) as held:
            file.submit(2 * file.alignment * rows, file.alignment, buffer, rows)
    finally:
        sys.settrace(None)
    assert len(file.under_way) == 1
    file.finish_reads()
    assert not file.under_way
    assert buffer.any()
    del held


def test_native_aio_gives_up_a_queue_whose_wait_is_broken_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that an interrupt loses would be waited for without end: nothing may be in flight, and the queue goes."""
    aio = make("aio")
    file, rows, real = store.open_ffn("bundled", aio), np.arange(4), native._syscall
    ticket = file.submit(2 * file.alignment * rows, file.alignment, direct.aligned_buffer(4, file.alignment), rows)

    def lose(number: int, *args: Any) -> int:
        real(number, *args)
        if number == aio.getevents:
            raise KeyboardInterrupt
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(native, "_syscall", lose)
        with pytest.raises(KeyboardInterrupt):
            ticket.wait()
    assert aio._all == aio.idle == []
    with pytest.raises(ReadError, match="Operation canceled"):
        ticket.wait()
    file.read(2 * file.alignment * rows, file.alignment, direct.aligned_buffer(4, file.alignment), rows)
    assert len(aio._all) == len(aio.idle) == 1


# Files that change under the model


@pytest.fixture
def copied(store: Store, tmp_path: Path) -> Store:
    """A store that a test may harm."""
    return Store(shutil.copytree(store.path, tmp_path / "copied"))


@pytest.mark.parametrize("how", ["replaced", "deleted"])
@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_a_file_that_gives_up_its_name_while_open_is_read_on(
    copied: Store, expected: Expected, stage: int, how: str
) -> None:
    model = load(copied, stage)
    for path in copied.path.glob("*.safetensors"):
        if how == "deleted":
            path.unlink()
        else:
            path.with_suffix(".new").write_bytes(bytes(path.stat().st_size))
            os.replace(path.with_suffix(".new"), path)
    write(model, expected)


@pytest.mark.parametrize("left", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_a_file_that_is_truncated_while_open_is_named_with_the_offset(
    copied: Store, expected: Expected, stage: int, left: float
) -> None:
    model = load(copied, stage)
    name = ffn_file(model.flash.stage.layout)
    path = copied.path / name
    whole = path.read_bytes()
    os.truncate(path, int(left * len(whole)) // 4096 * 4096)
    with pytest.raises(ReadError, match=rf"{name}: read at offset \d+ failed: only \d+ of \d+ bytes$"):
        write(model, expected)
    path.write_bytes(whole)
    write(model, expected)


# Too many open files


@contextlib.contextmanager
def room_for_files(count: int) -> Iterator[None]:
    """So many more may be opened."""
    gc.collect()  # what is closed later would make room
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_limit_of_open_files_is_no_fault_of_the_predictor(store: Store) -> None:
    message = rf"{PREDICTOR} cannot be opened: Too many open files: close some"
    with room_for_files(0), pytest.raises(ReadError, match=message):
        PredictorSet.load(store)


def test_a_limit_of_open_files_is_no_fault_of_the_weights(store: Store) -> None:
    message = rf"{RESIDENT} cannot be opened: Too many open files: close some"
    with room_for_files(0), pytest.raises(ReadError, match=message):
        store.verify_file(RESIDENT)


@pytest.mark.parametrize("verify_reads", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 5, 6])
def test_a_limit_of_open_files_is_one_clear_error(
    store: Store, expected: Expected, stage: int, verify_reads: bool
) -> None:  # fmt: skip
    """With room for none, one, two … more, until there is room for all that a model needs."""
    load(store.path, stage, verify_reads=verify_reads)  # so that all modules are imported
    refused: list[str] = []
    for room in range(64):
        try:
            with room_for_files(room):
                model = load(store.path, stage, verify_reads=verify_reads)
            break
        except ReadError as error:
            refused.append(str(error))
    assert len(refused) >= 2
    assert all("cannot be opened: Too many open files: close some, or allow more" in line for line in refused)
    assert not any("\n" in line for line in refused)
    write(model, expected)


def test_a_limit_of_open_files_on_the_command_line(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Any, *_: Any) -> int:
        raise OSError(24, os.strerror(24), path)

    monkeypatch.setattr(direct.os, "open", refuse)
    monkeypatch.setattr("sys.argv", ["flashlite", "eval", str(store.path), "--text", __file__])
    monkeypatch.setattr("flashlite.storage.tokenizer.read_files", lambda paths: "")
    monkeypatch.setattr("flashlite.storage.tokenizer.token_windows", lambda *_: torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(SystemExit) as end:
        cli.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 1
    assert len(lines) == 1
    assert lines[0].startswith("flashlite: ")
    assert "Too many open files" in lines[0]
