"""The engine on a student's file, from the command line: it says so, it stops at a stub, it shows no speed if wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

import flashlite
from flashlite.course.manifest import Course
from flashlite.storage.store import Store

STEP = "load = kept[self._uses[kept] == 0]"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return flashlite.pack("opt-mini", tmp_path_factory.mktemp("impl") / "store")


def solve_chapter_3(course: Course, old: str = STEP, new: str = STEP) -> None:
    """Write the solution, changed in one place, where the student would write it."""
    text = (ROOT / "solutions/ex03_window.py").read_text()
    assert text.count(old) == 1
    (course.root / "exercises/ex03_window.py").write_text(text.replace(old, new))


def call(course: Course, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flashlite", *map(str, args), "--impl", "ref,ex03=mine"]
    return subprocess.run(command, cwd=course.root, capture_output=True, text=True, check=False)


def bench(course: Course, store: Store) -> subprocess.CompletedProcess[str]:
    plot = ("--plot", course.root / "plot.png")
    return call(course, "bench", store.path, "--stage", 3, "--rounds", 1, "--tokens", 8, *plot)


def test_a_solved_chapter_is_benchmarked_in_the_engine(clone: Course, store: Store) -> None:
    solve_chapter_3(clone)
    done = bench(clone, store)
    assert done.returncode == 0, done.stderr
    assert "ex03 → exercises/ex03_window.py (edited)" in done.stderr
    result = json.loads(done.stdout)  # nothing else, because stdout is not a terminal
    assert result["impl"] == "ref,ex03=mine"
    assert [stage["name"] for stage in result["stages"]] == ["window"]
    assert result["stages"][0]["tokens_equal"]


def test_a_stub_stops_with_one_line_that_names_the_exercise(clone: Course, store: Store) -> None:
    done = call(clone, "run", store.path, "--stage", 3)
    assert done.returncode == 1
    assert "flashlite: exercise 3.2: delete this line and write step" in done.stderr
    assert "(exercises/ex03_window.py:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["bench", "run"])
def test_a_wrong_implementation_shows_no_speed(command: str, clone: Course, store: Store) -> None:
    solve_chapter_3(clone, "else NONE, overflow)", "else NONE, NONE)")  # neurons that find no room are left out
    done = bench(clone, store) if command == "bench" else call(clone, "run", store.path, "--stage", 3)
    assert done.returncode == 1
    assert "no speed is shown for a wrong answer" in done.stderr
    assert " ms" not in done.stdout + done.stderr


def test_a_crash_in_a_students_code_is_one_line_with_its_place(clone: Course, store: Store) -> None:
    solve_chapter_3(clone, STEP, "load = kept[self.nothing]")
    done = call(clone, "run", store.path, "--stage", 3)
    assert done.returncode == 1
    assert "ex03_window.py:" in done.stderr.splitlines()[-1]
    assert "AttributeError" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_run_continues_a_prompt_with_the_students_code(clone: Course, store: Store) -> None:
    solve_chapter_3(clone)
    done = call(clone, "run", store.path, "--stage", 3, "--max-new-tokens", 8)
    assert done.returncode == 0, done.stderr
    assert "def add(a, b):" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("[8 calls")
