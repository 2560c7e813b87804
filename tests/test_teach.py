"""Grading for teachers: several processes at a time, litter that is no student, hints in a grade, several exercises."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from flashlite.cli.main import app
from flashlite.cli.teach import chosen_exercises
from flashlite.course import grade as grading
from flashlite.course.classroom.hints import hints_before, next_hint
from flashlite.course.grade import Grade, grade_folders, packed_archives, submission_folder, visible_folders
from flashlite.course.manifest import Course
from flashlite.errors import FlashliteError


def run(course: Course, monkeypatch: pytest.MonkeyPatch, *args: object) -> Any:
    monkeypatch.chdir(course.root)
    return CliRunner().invoke(app, [str(a) for a in args])


def hand_in(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        shutil.copyfile(ROOT / "solutions" / name, folder / name)
    return folder


# Several processes at a time


def test_as_many_are_graded_at_a_time_as_asked_and_results_keep_their_order(
    course: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first waits for the last of those that run beside it, so each of them has begun."""
    together, least = threading.Barrier(3), []

    def judge(course: Course, folder: Path, exercise: Any, *_: object) -> Grade:
        least.append(together.wait(timeout=20))
        return Grade(exercise.id, exercise.title, len(folder.name), exercise.points, "PASS", "")

    monkeypatch.setattr(grading, "grade_one", judge)
    folders = [tmp_path / ("a" * n) for n in (1, 2, 3)]
    exercises = [course.find("4.1"), course.find("4.2")]
    found = list(grade_folders(course, folders, exercises, seed=1, jobs=3))
    assert [[(g.id, g.points) for g in grades] for grades in found] == [
        [("4.1", n), ("4.2", n)] for n in (1, 2, 3)
    ]  # fmt: skip
    assert sorted(least) == [0, 0, 1, 1, 2, 2]


def test_one_job_is_one_process_at_a_time(course: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def judge(course: Course, folder: Path, exercise: Any, *_: object) -> Grade:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.005)
        with lock:
            running -= 1
        return Grade(exercise.id, "", 0, 1, "TODO", "")

    monkeypatch.setattr(grading, "grade_one", judge)
    assert len(list(grade_folders(course, [tmp_path] * 5, course.exercises[:3], seed=1, jobs=1))) == 5
    assert most == 1


def test_whoever_stops_asking_ends_the_grading(course: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judged: list[str] = []

    def judge(course: Course, folder: Path, exercise: Any, *_: object) -> Grade:
        judged.append(exercise.id)
        if len(judged) > 1:
            threading.Event().wait(0.1)
        return Grade(exercise.id, "", 0, 1, "TODO", "")

    monkeypatch.setattr(grading, "grade_one", judge)
    graded = grade_folders(course, [tmp_path] * 99, course.exercises[:1], seed=1, jobs=1)
    next(graded)
    graded.close()
    assert len(judged) < 10


def test_a_class_is_the_same_table_with_any_number_of_jobs(
    clone: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hand_in(tmp_path / "class/ada", "ex07_speculative.py")
    wrong = hand_in(tmp_path / "class/bob", "ex07_speculative.py") / "ex07_speculative.py"
    wrong.write_text(f"{wrong.read_text()}\n\ndef {clone.find('7.1').qualname}(*args, **kwargs):\n    return None\n")
    tables = []
    for jobs in (1, 3):
        args = ("grade", "7.1", "--class", tmp_path / "class", "--csv", tmp_path / "out.csv", "--seed", 3)
        done = run(clone, monkeypatch, *args, "--jobs", jobs)
        assert done.exit_code == 0, done.output
        tables.append(((tmp_path / "out.csv").read_text(), done.output))
    assert tables[0] == tables[1]
    assert tables[0][0].splitlines()[1] == "ada,2,2,0"
    assert tables[0][0].splitlines()[2] != "bob,2,2,0"


@pytest.mark.parametrize("option", ["--json", "--gradescope", "--submission"])
def test_a_class_and_one_student_are_not_mixed_up(
    option: str, clone: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hand_in(tmp_path / "class/ada", "ex04_bundle.py")
    done = run(clone, monkeypatch, "grade", "--class", tmp_path / "class", option, tmp_path / "x")
    assert isinstance(done.exception, FlashliteError)
    assert str(done.exception) == f"--class goes without {option}, which is for one student: write one of them"


# Litter


LITTER = [
    ".ipynb_checkpoints", "__MACOSX", ".git", ".DS_Store", "__pycache__", "lost+found", "System Volume Information",
    "$RECYCLE.BIN", "@eaDir", "node_modules", "venv", ".venv", "~backup",
]  # fmt: skip


def test_litter_is_no_student(tmp_path: Path, course: Course) -> None:
    for name in LITTER:
        hand_in(tmp_path / name, "ex04_bundle.py")
    for name in ("Thumbs.db", "desktop.ini", "._ada", "grades.csv", ".hidden.zip"):
        (tmp_path / name).touch()
    hand_in(tmp_path / "ada")
    assert visible_folders(tmp_path) == [tmp_path / "ada"]
    assert packed_archives(tmp_path) == []
    assert visible_folders(tmp_path / "nowhere") == []


def test_litter_beside_a_students_folder_hides_it_from_nobody(tmp_path: Path, course: Course) -> None:
    inner = hand_in(tmp_path / "ada" / "course-main" / "exercises", "ex04_bundle.py")
    for name in LITTER:
        hand_in(tmp_path / "ada" / name, "ex04_bundle.py")
        (inner / name).mkdir()
    (inner / "._ex04_bundle.py").write_bytes(b"\0\5\26\7")
    (tmp_path / "ada" / "ada.zip").touch()
    assert submission_folder(course, tmp_path / "ada") == inner


def test_an_archive_that_nobody_unpacked_is_named(
    clone: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    classroom = tmp_path / "class"
    hand_in(classroom / "ada")
    hand_in(classroom / "d.ora", "ex04_bundle.py")
    for name in ("ada.ZIP", "bob.tar.gz", "d.ora.zip", "notes.txt"):
        (classroom / name).touch()
    assert packed_archives(classroom) == [classroom / "bob.tar.gz"]
    monkeypatch.setattr("flashlite.cli.teach.grade_folders", judged)
    done = run(clone, monkeypatch, "grade", "4", "--class", classroom, "--csv", tmp_path / "grades.csv")
    assert "class/bob.tar.gz is not graded: unpack it into a folder of its own" in done.output
    assert done.output.count("not graded") == 1
    (classroom / "ada" / "work.zip").touch()
    done = run(clone, monkeypatch, "grade", "--submission", classroom / "ada")
    assert str(done.exception).endswith("such as ex00_reads.py: unpack work.zip")


def judged(course: Course, folders: list[Path], exercises: Any, *_: object) -> list[list[Grade]]:
    """Grades that take no time."""
    return [[Grade(e.id, e.title, 0, e.points, "TODO", "", (1, 3)) for e in exercises] for _ in folders]


# Hints in the grade


def test_hints_before_a_pass_are_in_the_grade_and_later_ones_are_not(
    clone: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(ROOT / "solutions/ex07_speculative.py", clone.root / "exercises/ex07_speculative.py")
    for _ in range(2):
        run(clone, monkeypatch, "hint", "7.1")
    done = run(clone, monkeypatch, "grade", "7.1", "--json", "out.json")
    assert "PASS  2/2  2 hints" in done.output
    run(clone, monkeypatch, "hint", "7.1")
    run(clone, monkeypatch, "hint", "7.2")
    done = run(clone, monkeypatch, "grade", "7.1", "7.2", "--json", "out.json")
    hints = {e["id"]: e["hints"] for e in json.loads((clone.root / "out.json").read_text())["exercises"]}
    assert hints == {"7.1": [1, 2], "7.2": [1]}
    assert "hints: 2 of 7.1, 1 of 7.2" in run(clone, monkeypatch, "progress").output


def test_hints_come_with_a_submission_and_into_the_table(
    clone: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = hand_in(tmp_path / "class/ada/exercises", "ex07_speculative.py")
    exercise = clone.find("7.1")
    assert [next_hint(folder, exercise, passed=False) for _ in range(5)] == [1, 2, 3, 4, 1]
    assert hints_before(folder, exercise) == (1, 2, 3, 4)
    done = run(clone, monkeypatch, "grade", "7.1", "--class", tmp_path / "class", "--csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines() == ["student,7.1,total,hints", "ada,2,2,4"]
    assert "2/2  4 hints" in done.output


# Several exercises


@pytest.mark.parametrize(
    ("which", "ids"),
    [
        (["3.3", "3.2"], ["3.2", "3.3"]),
        (["3.2", "3", "3.2"], ["3.1", "3.2", "3.3", "3.4"]),
        (["5", "0.1", "9.1"], ["0.1", "5.1", "5.2", "5.3", "9.1"]),
    ],
)
def test_several_exercises_and_chapters_are_chosen(which: list[str], ids: list[str], course: Course) -> None:
    assert [e.id for e in chosen_exercises(course, which)] == ids


@pytest.mark.parametrize("which", [[], None])
def test_nothing_named_is_everything(which: list[str] | None, course: Course) -> None:
    assert chosen_exercises(course, which) == list(course.exercises)


def test_one_unknown_exercise_is_refused_before_any_is_graded(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    judge: Callable[..., Grade] = lambda *_: pytest.fail("it was graded")  # noqa: E731
    monkeypatch.setattr(grading, "grade_one", judge)
    done = run(clone, monkeypatch, "grade", "3.2", "77")
    assert str(done.exception).startswith("there is no exercise '77'")


def test_a_failure_has_lines_of_its_own(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "k = 4, capacity 23: neurons to load: at [11] found 12, expected 15 (4 of 31 differ), as far as can be told"
    wrong = f"Neurons already in DRAM were read [again].\n{long}"
    judge: Callable[..., Grade] = lambda c, f, e, *_: Grade(e.id, e.title, 0, e.points, "FAIL", wrong)  # noqa: E731
    monkeypatch.setattr(grading, "grade_one", judge)
    lines = run(clone, monkeypatch, "grade", "3.2").output.splitlines()
    assert lines[1].split()[-2:] == ["FAIL", f"0/{clone.find('3.2').points}"]
    assert lines[2] == "    Neurons already in DRAM were read [again]."
    assert lines[3].startswith("    k = 4, capacity 23: neurons to load: at [11]")
    assert lines[4].startswith("      ")
    assert lines[5] == "    → flashlite hint 3.2"
    assert max(map(len, lines)) <= 80
