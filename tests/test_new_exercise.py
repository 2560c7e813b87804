"""Beginning a new exercise, and the overview of all of them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import new_exercise
import pytest
import sync
from conftest import ROOT

from flashlite.course.grade import grade_one
from flashlite.course.manifest import Course, parse_toml, place, read_course
from flashlite.errors import FlashliteError


@pytest.fixture
def whole_clone(clone: Course) -> Course:
    shutil.copytree(ROOT / "tests/mutants", clone.root / "tests/mutants")
    return clone


def texts(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.suffix in {".toml", ".py"}]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


@pytest.mark.parametrize(
    ("identifier", "reference", "file"),
    [
        ("3.5", "flashlite.engine.window:Window.amend", "ex03_window.py"),
        ("1.4", "flashlite.families.opt:published_config", "ex01_families.py"),  # whose file has a name of its own
        ("7.3", "flashlite.engine.calls:OneAtATime.take", "ex07_calls.py"),  # whose file is new, and the last
    ],
)
def test_a_new_exercise_is_to_do_in_all_its_files(
    identifier: str, reference: str, file: str, whole_clone: Course
) -> None:
    before = [e.id for e in whole_clone.exercises]
    written = new_exercise.begin(whole_clone, identifier, reference)
    course = read_course(whole_clone.root)
    assert [e.id for e in course.exercises] == sorted([*before, identifier], key=place)
    exercise = course.find(identifier)
    assert (exercise.reference, exercise.file) == (reference, file)
    assert sync.stale_files(course) == []
    assert f"# TODO {identifier}" in (course.root / "exercises" / file).read_text()
    mutants = parse_toml((course.root / f"tests/mutants/ch{exercise.chapter:02}.toml").read_text())["mutant"]
    assert [m["exercise"] for m in mutants].count(identifier) == 2
    assert all("TODO" in (course.root / name).read_text() for name in written)
    assert grade_one(course, course.root / "exercises", exercise, 1).status == "TODO"
    failed = grade_one(course, course.root / "solutions", exercise, 1)
    assert (failed.status, failed.points) == ("FAIL", 0), "until its tests are written"


@pytest.mark.parametrize(
    ("identifier", "reference", "words"),
    [
        ("3.2", "flashlite.engine.window:Window.amend", "has an exercise 3.2"),
        ("3.5", "flashlite.engine.window:Window.step", "or one of flashlite.engine.window:Window.step"),
        ("3.5", "flashlite.engine.window:Window.nothing", "there is no function Window.nothing"),
        ("3.5", "flashlite.engine.windows:Window.step", "is not understood"),
        ("3.5", "flashlite.storage.bundle:round_up", "is a file of chapter 4 already"),
        ("11.1", "flashlite.engine.window:Window.amend", "is not of a chapter"),
        ("three", "flashlite.engine.window:Window.amend", "is not of a chapter"),
    ],
)
def test_what_cannot_be_an_exercise_is_refused_and_nothing_written(
    identifier: str, reference: str, words: str, whole_clone: Course
) -> None:
    before = texts(whole_clone.root)
    with pytest.raises(FlashliteError, match=words):
        new_exercise.begin(whole_clone, identifier, reference)
    assert texts(whole_clone.root) == before


def test_a_students_work_is_not_written_over(whole_clone: Course) -> None:
    path = whole_clone.root / "exercises/ex07_speculative.py"
    path.write_text(path.read_text() + "# mine\n")
    before = texts(whole_clone.root)
    with pytest.raises(FlashliteError, match=r"ex07_speculative\.py was edited"):
        new_exercise.begin(whole_clone, "3.5", "flashlite.engine.window:Window.amend")
    assert texts(whole_clone.root) == before


def test_the_overview_has_each_exercise_with_its_file_and_what_runs_it(course: Course) -> None:
    lines = (ROOT / "exercises/README.md").read_text().splitlines()
    for e in course.exercises:
        (line,) = [line for line in lines if line.startswith(f"| {e.id} ")]
        assert f"| `{e.qualname}` | [{e.file}]({e.file}) | {e.points or 'warm-up'} | {e.minutes} |" in line
        assert f"--impl ref,{e.id}=mine`" in line or f"the last code cell of chapter {e.chapter}" in line
    targets = [re.findall(r"\]\((.*?)\)", line) for line in lines if line.startswith("## [")]
    assert len(targets) >= len(course.chapters)
    for (target,) in targets:
        assert (ROOT / "exercises" / target).is_file()
