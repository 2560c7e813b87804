"""A benchmark under way: its steps, an interrupt, a busy machine, and where its results may be written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, call

import flashlite
from flashlite.bench import ladder, machine
from flashlite.bench.ladder import Interrupted, bench
from flashlite.bench.process import run as process
from flashlite.bench.process.run import Step, run_steps, run_worker, seconds_left
from flashlite.bench.process.task import DenseTask, PeerTask, Setup, StageTask, Task, read_task, write_task
from flashlite.bench.result import Result
from flashlite.engine.kernels import others, waiting
from flashlite.errors import BudgetError, FlashliteError
from flashlite.storage.store import Store

KEPT = Result.from_json(json.loads((ROOT / "results/bench-opt-mini-fp32.json").read_text()))
BUDGET = "2MB"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Task[Any]]:
    """What would have been measured: every process answers at once with what a kept result says."""
    tasks: list[Task[Any]] = []

    def answer(task: Task[Any], command: object = None) -> Any:
        tasks.append(task)
        return KEPT.stages[task.stage] if isinstance(task, StageTask) else KEPT.dense

    monkeypatch.setattr(ladder, "run_worker", answer)
    monkeypatch.setattr(ladder, "prompt_ids", lambda store, length: [5] * length)
    monkeypatch.setattr(ladder, "cores_of_others", lambda: 0.0)
    monkeypatch.setattr(ladder, "measure_ceiling", lambda *_: (KEPT.curve, KEPT.ceiling))
    monkeypatch.setattr(ladder, "beside_prediction", lambda run, *_: run)
    return tasks


# Tasks


def test_tasks_come_back_from_their_files(tmp_path: Path) -> None:
    setup = Setup("store", "folder", [1, 2], 8)
    for task in (DenseTask(setup), StageTask(setup, 5, 10**9), StageTask(setup, 5, "50%"), PeerTask(setup, "any")):
        write_task(tmp_path / "task.json", task)
        assert read_task(tmp_path / "task.json") == task


# Steps


def test_every_step_is_announced_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [0.0], []
    monkeypatch.setattr(process.time, "monotonic", lambda: now[0])

    def takes(seconds: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    steps = [Step("dense", "the dense model", takes(60)), Step("stage", "stage 5", takes(180))]
    run_steps([*steps, *steps], lines.append)
    assert lines == [
        "step 1 of 4: the dense model",
        "step 2 of 4, about 3 min left: stage 5",  # as long as the one that is done, each
        "step 3 of 4, about 4 min left: the dense model",
        "step 4 of 4, about 3 min left: stage 5",
    ]


def test_a_step_takes_as_long_as_its_kind_or_as_all_did() -> None:
    done = {"dense": [2.0, 4.0], "stage 0": [30.0]}
    assert seconds_left(["dense", "stage 0", "stage 1"], done) == 3 + 30 + 12
    assert seconds_left([], done) == 0
    assert seconds_left(["dense"], {}) is None
    assert [process.spoken_time(seconds) for seconds in (20, 40, 3500, 4000, 90_000)] == [
        "less than a minute", "about 1 min", "about 58 min", "about 1 h 7 min", "about 25 h 0 min",
    ]  # fmt: skip


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_benchmark_knows_its_steps(rounds: int, tiny_store: Store, measured: list[Task[Any]]) -> None:
    lines: list[str] = []
    result = bench(tiny_store, stages=[0, 5], tokens=8, prompt_tokens=8, budget=BUDGET, rounds=rounds,
                   progress=lines.append)  # fmt: skip
    count = 2 + 2 * rounds + (rounds > 1)
    assert [line.split(",")[0].split(":")[0] for line in lines] == [f"step {n} of {count}" for n in range(1, count + 1)]
    assert [task.check for task in measured if isinstance(task, StageTask)] == [8] * 2 + [0] * 2 * (rounds - 1)
    stages = [task.stage for task in measured if isinstance(task, StageTask)]
    assert stages == [0, 5, 5, 0, 0, 5][: 2 * rounds], "the order is turned round each time"
    assert [row.name for row in result.stages] == ["naive", "pool"]
    assert result.disturbance is not None
    assert (result.disturbance.dense_drift is None) == (rounds == 1)


# Interrupts


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the benchmark in its n-th process."""
    answer, calls = ladder.run_worker, iter(range(1, 100))

    def interrupted(*args: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return answer(*args)

    monkeypatch.setattr(ladder, "run_worker", interrupted)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("number", "complete"), [(1, None), (2, None), (3, ["naive"]), (4, ["naive", "pool"])])
def test_an_interrupt_leaves_what_is_complete(
    number: int, complete: list[str] | None, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(number, monkeypatch)
    with pytest.raises(Interrupted) as interrupted:
        bench(tiny_store, stages=[0, 5], tokens=8, prompt_tokens=8, budget=BUDGET, rounds=3)
    result = interrupted.value.result
    assert (result and [row.name for row in result.stages]) == complete
    assert not [path for path in tiny_store.path.parent.iterdir() if "flashlite-bench" in path.name]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("number", "shown"), [(1, []), (4, ["0 naive", "5 pool"])])
def test_an_interrupted_command_shows_its_rows_and_writes_no_result(
    number: int, shown: list[str], tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    interrupt_at(number, monkeypatch)
    args = ("bench", tiny_store.path, "--stages", "0,5", "--tokens", 8, "--dram-budget", BUDGET)
    code, out, err = call(monkeypatch, capsys, *args, "--json", "out.json")
    assert code == 130
    assert [name for name in ("0 naive", "5 pool", "6 overlap") if name in out] == shown
    assert err.splitlines()[-1] == f"interrupted: {len(shown)} of 2 stages are complete"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


CHILD = """
import signal
import sys
from flashlite.bench.process.run import run_worker
from flashlite.bench.process.task import IdleTask, Setup

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what runs in the background ignore it
run_worker(IdleTask(Setup("", sys.argv[1], [], 0)), ["/bin/sh", "-c", f"echo $$ > {sys.argv[1]}/pid; exec sleep 600"])
"""


@pytest.mark.skipif(os.name != "posix", reason="it asks a process by its number")
def test_an_interrupt_ends_the_process_that_measures(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path], env=environment, stderr=subprocess.PIPE)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)  # to it alone; a terminal would tell both
    assert parent.wait(60) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# A busy machine


def test_what_other_processes_use_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter((100.0, 103.0))
    clock = {"perf_counter": iter((10.0, 12.0)), "process_time": iter((5.0, 6.0))}
    monkeypatch.setattr(others, "_busy_seconds", lambda cores: next(busy))
    for name, values in clock.items():
        monkeypatch.setattr(others.time, name, lambda values=values: next(values))
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: None)
    assert machine.cores_of_others() == (3.0 - 1.0) / 2.0


@pytest.mark.parametrize(("load", "cores"), [(0.4, 0.0), (2.5, 1.5)])
def test_where_there_is_no_proc_the_load_says_it(
    load: float, cores: float, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(others, "_busy_seconds", lambda cores: None)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert machine.cores_of_others() == cores
    monkeypatch.delattr(os, "getloadavg")
    assert machine.cores_of_others() is None


STAT = """cpu  100 20 300 9999 8888 4 5 60 7 8
cpu0 90 10 300 1 1 4 5 10
cpu1 9 10 0 1 1 0 0 50
cpu7 1 0 0 9 9 0 0 0
intr 5 6
"""


@pytest.mark.parametrize(
    ("cores", "ticks"),
    [({0, 1, 7}, 489), ({1}, 69), ({1, 7}, 70), ({4, 5}, 489)],
    ids=["all", "one", "some", "of a container that numbers its own anew"],
)
def test_all_work_of_the_cores_that_a_process_may_use_is_counted(
    cores: set[int], ticks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: STAT)
    monkeypatch.setattr(os, "sysconf", lambda name: 100, raising=False)
    assert others._busy_seconds(cores) == ticks / 100


@pytest.mark.parametrize("said", ["", "intr 5 6\n", "cpu\n", "cpu  a b c d e f g h\n"])
def test_what_says_nothing_of_cores_is_no_count(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: said)
    assert others._busy_seconds({0}) is None
    assert not others.Others().counted


@pytest.mark.parametrize(
    ("busy", "threads", "chosen", "warned"),
    [
        (1.0, 2, {}, True), (0.3, 2, {}, False), (1.0, 1, {}, False), (None, 2, {}, False),
        (1.0, 2, {"GOMP_SPINCOUNT": "1"}, False), (1.0, 2, {"OMP_WAIT_POLICY": "passive"}, False),
        (1.0, 2, {"GOMP_SPINCOUNT": "", "OMP_WAIT_POLICY": " "}, True),
    ],
)  # fmt: skip
def test_load_says_that_torchs_threads_suffer(
    busy: float | None, threads: int, chosen: dict[str, str], warned: bool, tiny_store: Store,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for name in waiting.CHOICES:
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(others.Others, "cores", lambda self: busy)
    monkeypatch.setattr(others, "_busy_seconds", lambda cores: 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 6}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    flashlite.load(tiny_store, dram_budget="90%")
    lines = [line for line in caplog.messages if "other programs" in line]
    assert len(lines) == warned
    assert not warned or "keep 1.0 of 2 cores busy, and torch's 2 threads" in lines[0]


def test_a_load_that_may_be_this_processs_own_is_no_reason_for_the_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in waiting.CHOICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(others, "_busy_seconds", lambda cores: None)
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0.0, 0.0), raising=False)
    others.warn_if_busy(others.Others(), 2)
    assert not caplog.messages


def test_a_moment_is_too_short_to_tell_who_is_busy() -> None:
    assert others.Others().cores() is None


ECHO = (
    "/bin/sh",
    "-c",
    'echo "{\\"error\\": \\"spins $GOMP_SPINCOUNT\\"}"',
)  # a process that fails with what it was told


@pytest.mark.skipif(os.name != "posix", reason="the process is a shell")
@pytest.mark.parametrize(
    ("task", "spins"),
    [(StageTask, "1000"), (DenseTask, ""), (partial(DenseTask, streamed=True), "1000"), (PeerTask, "")],
)
def test_processes_that_stream_let_torchs_threads_sleep_soon(
    task: Callable[..., Task[Any]], spins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in waiting.CHOICES:
        monkeypatch.delenv(name, raising=False)
    named = {StageTask: (5,), PeerTask: ("accelerate",)}.get(task, ())  # type: ignore[call-overload]
    with pytest.raises(FlashliteError, match=f"^spins {spins}$"):
        run_worker(task(Setup("", str(tmp_path), [], 0), *named), ECHO)


def test_whoever_chose_how_torchs_threads_wait_has_it_so() -> None:
    assert waiting.waiting_briefly({"A": "1"}) == {"A": "1", "GOMP_SPINCOUNT": "1000"}
    assert waiting.waiting_briefly({"GOMP_SPINCOUNT": ""}) == {"GOMP_SPINCOUNT": "1000"}  # as if unset
    for chosen in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}):
        assert waiting.waiting_briefly(chosen) == chosen


def test_a_busy_machine_is_in_the_result(
    tiny_store: Store, measured: list[Task[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = iter((replace(KEPT.dense, total_ms=5.0, scatter=0.05), replace(KEPT.dense, total_ms=6.0, scatter=0.3)))
    answer = ladder.run_worker
    monkeypatch.setattr(
        ladder, "run_worker", lambda task, *args: next(dense) if isinstance(task, DenseTask) else answer(task, *args)
    )
    monkeypatch.setattr(ladder, "cores_of_others", lambda: 1.5)
    result = bench(tiny_store, stages=[5], tokens=8, prompt_tokens=8, budget=BUDGET, rounds=2)
    assert result.dense.total_ms == 5.5
    assert result.disturbance == machine.Disturbance(1.5, 0.3, 1 / 5.5)
    assert len(result.disturbance.signs) == 3


# Before anything is measured


@pytest.mark.parametrize(
    ("wish", "error", "message"),
    [
        ({"budget": 1000}, BudgetError, "the smallest that works is"),
        ({"budget": "half"}, BudgetError, "not understood"),
        ({"tokens": 128}, FlashliteError, "136 tokens is too long: the model has 128 positions"),
    ],
)
def test_what_cannot_work_is_refused(
    wish: dict[str, Any], error: type[Exception], message: str, tiny_store: Store, measured: list[Task[Any]]
) -> None:
    with pytest.raises(error, match=message):
        bench(tiny_store, **{"stages": [1, 5], "tokens": 8, "prompt_tokens": 8, "budget": BUDGET} | wish)
    assert measured == []


def refuse_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let folders be made only where temporary files belong, as for a store on a file system that can't be written."""
    real = tempfile.TemporaryDirectory

    def make(prefix: str, dir: Path | None = None) -> Any:
        if dir is not None:
            raise PermissionError(30, "Read-only file system")
        return real(prefix=prefix)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", make)


def test_a_store_whose_folder_cannot_be_written_is_measured_all_the_same(
    tiny_store: Store, measured: list[Task[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_beside(monkeypatch)
    wish = {"stages": [5], "tokens": 8, "prompt_tokens": 8, "budget": BUDGET, "rounds": 1}
    assert [row.name for row in bench(tiny_store, **wish).stages] == ["pool"]
    assert Path(measured[0].setup.folder).parent == Path(tempfile.gettempdir())
    with pytest.raises(FlashliteError, match=r"--peers needs a checkpoint on the same drive.*Read-only file system"):
        bench(tiny_store, **wish, peers=True)


# Where results go


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tiny_store: Store, tmp_path: Path) -> list[object]:
    """A bench that answers at once, in a folder of its own. Returns what it was asked for."""
    asked: list[object] = []

    def answer(*args: object, **wish: object) -> Result:
        asked.append(wish)
        return KEPT

    monkeypatch.setattr(ladder, "bench", answer)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return asked


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("args", "on_terminal", "json_in"),
    [((), True, None), ((), False, "out"), (("--json", "-"), True, "out"), (("--json", "-"), False, "out"),
     (("--json", "x/y.json"), True, "x/y.json"), (("--json", "x/y.json"), False, "x/y.json")],
)  # fmt: skip
def test_json_or_words_go_to_stdout_and_never_both(
    args: tuple[str, ...], on_terminal: bool, json_in: str | None, tiny_store: Store,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if on_terminal:
        terminal(monkeypatch)
    code, out, err = call(monkeypatch, capsys, "bench", tiny_store.path, "--dram-budget", BUDGET, *args)
    assert code == 0
    words, other = (err, out) if json_in == "out" else (out, err)
    assert all(text in words for text in ("opt-mini fp32", "5 pool", "same tokens: ✓", "plot: "))
    assert "5 pool" not in other
    if json_in:
        content = out if json_in == "out" else Path(json_in).read_text()
        assert Result.from_json(json.loads(content)) == KEPT
    assert Path("x").exists() == (json_in == "x/y.json")
    assert Path("-").exists() is False


@pytest.mark.usefixtures("quick")
def test_wide_is_asked_for(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch)
    for args, inside in (((), False), (("--wide",), True)):
        out = call(monkeypatch, capsys, "bench", tiny_store.path, "--dram-budget", BUDGET, *args)[1]
        assert ("reads/token" in out) == inside


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--plot", "out.txt"), "--plot out.txt has no ending that matplotlib knows"),
        (("--json", "afile/x.json"), "is not a folder"),
        (("--json", "adir"), "--json adir is a folder"),
        (("--plot", "adir"), "--plot adir"),
    ],
)
def test_places_of_results_are_looked_at_first(
    args: tuple[str, ...], message: str, quick: list[object], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("flashlite.cli.measure.open_store", lambda *_: quick.append("begun"))
    Path("adir").mkdir()
    Path("afile").touch()
    code, out, err = call(monkeypatch, capsys, "bench", "opt-mini", *args)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("flashlite: ")
    assert message in line
    assert quick == []
    assert sorted(os.listdir()) == ["adir", "afile"]


@pytest.mark.usefixtures("quick")
def test_a_working_folder_that_cannot_be_written_costs_the_plot_alone(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path(".flashlite").write_text("in the way")
    code, out, _ = call(
        monkeypatch, capsys, "bench", tiny_store.path, "--dram-budget", BUDGET, "--json", tmp_path / "out.json"
    )
    assert code == 0
    assert "no plot at .flashlite/bench.png: " in out
    assert Result.from_json(json.loads((tmp_path / "out.json").read_text())) == KEPT
