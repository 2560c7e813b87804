"""The engine on a student's file, from the command line: it says so, it stops at a stub, it shows no speed if wrong, it
counts calls, and it writes nothing where the engine's own code looks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from safetensors.torch import save_file
from transformers import FalconConfig

import flashlite
from flashlite.course import counting
from flashlite.course.manifest import Course
from flashlite.course.open_clean import open_clean
from flashlite.course.stand_in import TOKENIZER, random_model
from flashlite.engine import window
from flashlite.errors import FlashliteError, StoreError
from flashlite.storage.find import check_apart, home, open_model
from flashlite.storage.hub import BUNDLED_MODEL
from flashlite.storage.side_files import copy_files
from flashlite.storage.store import CHECKSUMS, PACKED_BY, PREDICTOR, Store, ffn_file

STEP = "load = kept[self._uses[kept] == 0]"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return flashlite.pack("opt-mini", tmp_path_factory.mktemp("impl") / "store")


def solve_chapter_3(course: Course, old: str = STEP, new: str = STEP) -> None:
    """Write the solution, changed in one place, where the student would write it."""
    text = (ROOT / "solutions/ex03_window.py").read_text()
    assert text.count(old) == 1
    (course.root / "exercises/ex03_window.py").write_text(text.replace(old, new))


def call(course: Course, *args: object, impl: str = "ref,ex03=mine") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flashlite", *map(str, args), "--impl", impl]
    return subprocess.run(command, cwd=course.root, capture_output=True, text=True, check=False)


def bench(course: Course, store: Store) -> subprocess.CompletedProcess[str]:
    plot = ("--plot", course.root / "plot.png")
    return call(course, "bench", store.path, "--stage", 3, "--rounds", 1, "--tokens", 8, *plot)


@pytest.mark.slow
def test_a_solved_chapter_is_benchmarked_in_the_engine(clone: Course, store: Store) -> None:
    solve_chapter_3(clone)
    done = bench(clone, store)
    assert done.returncode == 0, done.stderr
    assert "ex03 → exercises/ex03_window.py (edited)" in done.stderr
    result = json.loads(done.stdout)  # nothing else, because stdout is not a terminal
    assert result["impl"] == "ref,ex03=mine"
    assert [stage["name"] for stage in result["stages"]] == ["window"]
    assert result["stages"][0]["tokens_equal"]
    assert set(result["calls"]) == {"3.2", "3.3"}
    table = dict(line.split()[::2] for line in done.stderr.splitlines() if line.startswith(("3.2", "3.3")))
    assert {exercise: int(calls) for exercise, calls in table.items()} == result["calls"]
    assert result["calls"]["3.2"] >= 6 * 2 * 8, "6 layers, 8 tokens, timed and checked"
    assert "not called here: 3.1, 3.4" in done.stderr


def test_a_stub_stops_with_one_line_that_names_the_exercise(clone: Course, store: Store) -> None:
    done = call(clone, "run", store.path, "--stage", 3)
    assert done.returncode == 1
    assert "flashlite: exercise 3.2: delete this line and write step" in done.stderr
    assert "(exercises/ex03_window.py:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_wrong_implementation_shows_no_speed(clone: Course, store: Store) -> None:
    solve_chapter_3(clone, "else NONE, overflow)", "else NONE, NONE)")  # neurons that find no room are left out
    done = call(clone, "run", store.path, "--stage", 3)
    assert done.returncode == 1
    assert "no speed is shown for a wrong answer" in done.stderr
    assert " ms" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_crash_in_a_students_code_is_one_line_with_its_place(clone: Course, store: Store) -> None:
    solve_chapter_3(clone, STEP, "load = kept[self.nothing]")
    done = call(clone, "run", store.path, "--stage", 3)
    assert done.returncode == 1
    assert "ex03_window.py:" in done.stderr.splitlines()[-1]
    assert "AttributeError" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_run_continues_a_prompt_with_the_students_code(clone: Course, store: Store) -> None:
    solve_chapter_3(clone)
    done = call(clone, "run", store.path, "--stage", 3, "--max-new-tokens", 8, "--window", "auto")
    assert done.returncode == 0, done.stderr
    assert "def add(a, b):" in done.stdout
    line, _, *calls, missing = done.stdout.splitlines()[-6:]
    assert line.startswith("[8 calls")
    assert [row.split()[:2] for row in calls] == [
        ["3.2", "Window.step"], ["3.3", "Window._forget_oldest"], ["3.4", "largest_window"],
    ]  # fmt: skip
    assert missing == "not called here: 3.1"


# What exercises write


@pytest.fixture
def wrong(clone: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Course:
    """A clone whose pack_bundles puts the two halves of a neuron the wrong way round, and an empty home."""
    text = (ROOT / "solutions/ex04_bundle.py").read_text()
    assert text.count("[up, down.T]") == 1
    (clone.root / "exercises/ex04_bundle.py").write_text(text.replace("[up, down.T]", "[down.T, up]"))
    (clone.root / "flashlite/opt_mini").symlink_to(ROOT / "flashlite/opt_mini")
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    return clone


def contents(folder: Path) -> dict[str, str]:
    """The digest of each file in a folder, by its name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_a_model_is_packed_by_the_engine_whatever_runs_it(wrong: Course, store: Store) -> None:
    done = call(wrong, "run", "opt-mini", "--stage", 4, "--max-new-tokens", 2, impl="ref,ex04=mine")
    assert done.returncode == 0, done.stderr
    (packed,) = (home() / "stores").iterdir()
    assert Store(packed).manifest["files"] == store.manifest["files"]
    assert PACKED_BY not in Store(packed).manifest
    Store(packed).verify()


@pytest.mark.slow
def test_a_process_that_began_with_exercises_has_models_packed_by_the_engine_too(
    wrong: Course, tiny_checkpoint: Path, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"from flashlite.course import plug\nprint(plug.plug_in('ref', {str(tiny_checkpoint)!r}).model)\n"
    (wrong.root / "program.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(wrong.root))
    spec = json.dumps({"flashlite.storage.bundle": {"file": "exercises/ex04_bundle.py"}})
    command = [sys.executable, "-m", "flashlite.course.plug", spec, "program"]
    done = subprocess.run(command, cwd=wrong.root, capture_output=True, text=True, check=True)
    assert Store(done.stdout.strip()).manifest["files"] == tiny_store.manifest["files"]


@pytest.mark.slow
def test_what_exercises_pack_says_so_and_is_found_by_its_path_alone(
    wrong: Course, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    mine = wrong.root / "mine"
    done = call(wrong, "pack", "opt-mini", mine, impl="ref,ex04=mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2].split() == ["4.1", "pack_bundles", "6"]
    packed = Store(mine)
    assert packed.manifest[PACKED_BY] == "ex04_bundle.py"
    differ = {name for name, entry in packed.manifest["files"].items() if entry != store.manifest["files"][name]}
    assert differ == {ffn_file("bundled"), CHECKSUMS}
    with caplog.at_level(logging.WARNING):
        open_model(mine)
    assert "mine was packed by ex04_bundle.py in place of the engine's own code" in caplog.text
    assert not home().exists()
    assert open_model("opt-mini").manifest["files"] == store.manifest["files"]


@pytest.mark.slow
def test_exercises_write_nothing_where_the_engines_own_code_looks(wrong: Course, store: Store) -> None:
    shared = open_model("opt-mini").path
    before, text = contents(home()), Path(threading.__file__)
    own = contents(store.path)
    for command, words in {
        ("pack", "opt-mini", shared, "--force"): "is among the models that the engine packed",
        ("pack", "opt-mini", store.path, "--force"): "is a store of the engine's own",
        ("train-predictor", store.path, "--text", text): "is a store of the engine's own",
    }.items():
        done = call(wrong, *command, impl="ref,ex02=solutions,ex04=mine")
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert contents(home()) == before
    assert contents(store.path) == own


def test_a_store_of_exercises_in_the_engines_place_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path))
    packed = open_model("opt-mini").path
    shutil.rmtree(packed)
    flashlite.pack("opt-mini", packed, packed_by="ex04_bundle.py")
    with pytest.raises(StoreError, match=r"was packed by ex04_bundle\.py, not by the engine's own code: remove it"):
        open_model("opt-mini")


def test_a_place_below_a_store_of_the_engine_is_not_apart_but_one_of_ones_own_is(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.path)
    places = (store.path, store.path / PREDICTOR, tmp_path / "link/new", Path(os.path.relpath(store.path)))
    for place in places:
        with pytest.raises(StoreError, match="is a store of the engine's own"):
            check_apart(place)
    for place in (home(), home() / "stores/mine", home() / "stores/../mine"):
        with pytest.raises(StoreError, match="is among the models that the engine packed"):
            check_apart(place)
    mine = flashlite.pack("opt-mini", tmp_path / "mine", layouts=("split",), packed_by="ex04_bundle.py")
    check_apart(mine.path)
    check_apart(mine.path / PREDICTOR)


@pytest.mark.slow
def test_a_model_that_cannot_be_opened_is_the_same_line_with_exercises(wrong: Course) -> None:
    done = call(wrong, "run", wrong.root / "exercises")
    assert done.returncode == 1
    assert done.stderr.startswith(f"flashlite: {wrong.root}/exercises is neither a store nor a checkpoint")
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(FlashliteError, match="is neither a store nor a checkpoint"):
        open_clean(str(wrong.root / "exercises"), None)


def test_a_window_that_cannot_be_meant_is_refused_first(clone: Course, store: Store) -> None:
    for command in ("run", "bench"):
        done = call(clone, command, store.path, "--window", "long", impl="ref")
        assert done.stderr.startswith("flashlite: a window of long tokens is not understood")
        assert len(done.stderr.splitlines()) == 1


# Counting


@pytest.fixture
def calls() -> Iterator[counting.Calls]:
    calls = counting.Calls()
    yield calls
    calls.end()


def test_calls_of_several_threads_and_processes_add_up(
    clone: Course, calls: counting.Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve_chapter_3(clone)
    module = types.ModuleType("some")
    module.twice = lambda x: 2 * x  # type: ignore[attr-defined]
    counting.count(module, {"twice": "9.1", "Missing.method": "9.2"})
    workers = [threading.Thread(target=lambda: [module.twice(1) for _ in range(20_000)]) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    spec = {"flashlite.engine.window": {"file": "exercises/ex03_window.py", "counted": {"largest_window": "3.4"}}}
    program = "from flashlite.engine.window import largest_window\nfor _ in range(5): largest_window([2], 3)\n"
    (clone.root / "program.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(clone.root))
    for _ in range(2):
        command = [sys.executable, "-m", "flashlite.course.plug", json.dumps(spec), "program"]
        subprocess.run(command, cwd=clone.root, check=True)
    assert calls.total() == {"9.1": 80_000, "3.4": 10}
    calls.end()
    assert counting.FOLDER not in os.environ


def test_counting_changes_nothing_but_the_count(calls: counting.Calls) -> None:
    counted = counting.counting(window.largest_window, "3.4")
    assert (counted.__name__, counted.__doc__) == ("largest_window", window.largest_window.__doc__)
    assert counted((1.0, 2.0), rows=1) == 1
    with pytest.raises(TypeError):
        counted()
    assert calls.total() == {"3.4": 2}
    assert counting.table({"3.2": "Window.step", "3.4": "largest_window"}, calls.total()) == [
        "exercise  function        calls",
        "3.4       largest_window      2",
        "not called here: 3.2",
    ]


# Models of other families


def test_only_an_electives_exercises_run_other_families(clone: Course, tmp_path: Path) -> None:
    config = FalconConfig(
        vocab_size=4096, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, ffn_hidden_size=96, bias=True,
        activation="relu",
    )  # fmt: skip
    config.save_pretrained(tmp_path / "falcon")
    weights = {name: tensor.clone() for name, tensor in random_model(config).state_dict().items()}
    save_file(weights, tmp_path / "falcon/model.safetensors")
    copy_files(BUNDLED_MODEL, tmp_path / "falcon", TOKENIZER)
    store = flashlite.pack(tmp_path / "falcon", tmp_path / "store", "fp32")
    run = ("run", store.path, "--stage", 6, "--predictor", "copy", "--max-new-tokens", 4, "--dram-budget", "100%")
    done = call(clone, *run, impl="ref,ex09=solutions")
    assert done.returncode == 0, done.stderr
    called = {line.split()[0]: int(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("9.")}
    assert called.keys() == {"9.1", "9.2", "9.3"}
    assert called["9.3"] >= 3, "one layer, three tokens after the first"
    refused = call(clone, *run, impl="ref,ex03=solutions,ex09=solutions")
    assert refused.returncode == 1
    assert "the exercises ex03 run OPT in fp32, bf16 or fp16, and" in refused.stderr
    assert "is of type falcon: leave them out of --impl" in refused.stderr
