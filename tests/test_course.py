"""The course around the engine: files made from it, grading that survives anything, the engine on students' code."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sync
from conftest import ROOT
from typer.testing import CliRunner

from flashlite.cli.main import app, main
from flashlite.course.generate import find_function, generated_files
from flashlite.course.grade import Grade, exercise_tests, grade, grade_one
from flashlite.course.manifest import STUBS, Course, find_course, read_course
from flashlite.course.plug import choose, describe
from flashlite.errors import FlashliteError


def edit(course: Course, file: str, old: str, new: str) -> Path:
    path = course.root / "exercises" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


# The manifest and what is made from it


def test_points_sum_to_a_hundred_and_ids_are_in_order(course: Course) -> None:
    assert sum(exercise.points for exercise in course.exercises) == 100
    ids = [tuple(map(int, exercise.id.split("."))) for exercise in course.exercises]
    assert ids == sorted(set(ids))
    assert {exercise.chapter for exercise in course.exercises} == set(course.chapters)


def test_contracts_are_whole(course: Course) -> None:
    for e in course.exercises:
        assert 5 <= e.minutes <= 25
        assert 1 <= e.difficulty <= 3
        assert len(e.hints) == 3
        for text in (e.title, e.task, e.example, e.why, e.mistakes, e.paper, *e.hints):
            assert len(text.strip()) > 3, f"{e.id} lacks a text"


def test_tests_give_just_the_points_of_the_manifest(course: Course) -> None:
    worth: Counter[str] = Counter()

    class Points:
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            for mark in filter(None, (item.get_closest_marker("points") for item in items)):
                worth[mark.args[0]] += mark.args[1]

    pytest.main([str(ROOT / "tests/exercises"), "--collect-only", "-q", "--noconftest"], plugins=[Points()])
    assert worth == {e.id: e.points for e in course.exercises}


def test_generated_files_are_in_sync() -> None:
    course = read_course(ROOT)
    edited = {f"exercises/{name}" for name in sync.edited_exercises(course)}  # a student's work is no fault
    assert set(sync.stale_files(course)) - edited == set()


def test_changing_the_engine_makes_the_check_fail(clone: Course) -> None:
    assert sync.stale_files(clone) == []
    path = clone.root / "flashlite/engine/window.py"
    path.write_text(path.read_text().replace("self._uses[kept] += 1", "self._uses[kept] += 2"))
    assert sync.stale_files(clone) == ["solutions/ex03_window.py"]


def test_sync_refuses_to_write_over_a_students_work(clone: Course) -> None:
    path = edit(clone, "ex03_window.py", "raise NotImplementedError", "return NotImplementedError")
    mine = path.read_text()
    with pytest.raises(FlashliteError, match=r"ex03_window.py was edited.*--force"):
        sync.sync(clone, force=False)
    assert path.read_text() == mine
    sync.sync(clone, force=True)
    assert not clone.is_edited(path)


def test_no_exercise_holds_a_solution(course: Course) -> None:
    files = generated_files(course)
    for e in course.exercises:
        text = files[f"solutions/{e.file}"]
        function = find_function(ast.parse(text), e.qualname)
        body = [ast.unparse(node) for node in function.body[1:]]
        stub_function = find_function(ast.parse(files[f"exercises/{e.file}"]), e.qualname)
        assert len(stub_function.body) == 2  # its docstring, and the error
        assert ast.get_docstring(function) == ast.get_docstring(stub_function)
        assert "\n".join(body) not in ast.unparse(ast.parse(files[f"exercises/{e.file}"]))


# Grading


def test_untouched_stubs_are_all_to_do(clone: Course) -> None:
    grades = grade(clone, clone.root / "exercises", clone.exercises, seed=1)
    assert {(g.status, g.points) for g in grades} == {("TODO", 0)}


def test_each_stub_fails_by_its_own_error_alone(clone: Course) -> None:
    """Run for real: a comment makes each file count as edited."""
    for file in clone.files:
        path = clone.root / "exercises" / file
        path.write_text(path.read_text() + "# mine\n")
    for e, g in zip(clone.exercises, grade(clone, clone.root / "exercises", clone.exercises, seed=1), strict=True):
        assert (g.status, g.points) == ("TODO", 0), g
        assert g.message.startswith(f"exercise {e.id}:")


def test_solutions_earn_every_point(course: Course) -> None:
    grades = grade(course, ROOT / "solutions", course.exercises, seed=2)
    assert [g for g in grades if g.status != "PASS"] == []
    assert sum(g.points for g in grades) == 100


BROKEN = {
    "syntax error": ("def clear(self)", "def clear(self", "ERROR", r"ex03_window.py:\d+: .*SyntaxError"),
    "endless loop": ("class Window:", "while True:\n    pass\n\n\nclass Window:", "FAIL", "endless loop"),
    "exit": ("class Window:", "raise SystemExit(0)\n\n\nclass Window:", "ERROR", "SystemExit"),
    "hard exit": ("class Window:", "import os\nos._exit(0)\n\n\nclass Window:", "ERROR", "left with code 0"),
    "segfault": ("class Window:", "import ctypes\nctypes.string_at(0)\n\n\nclass Window:", "ERROR", "SIGSEGV"),
    "import": ("class Window:", "import not_there\n\n\nclass Window:", "ERROR", "ModuleNotFoundError.*not_there"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_judged_and_leave_the_others_alone(kind: str, clone: Course) -> None:
    old, new, status, message = BROKEN[kind]
    edit(clone, "ex03_window.py", old, new)
    shutil.copyfile(ROOT / "solutions/ex04_bundle.py", clone.root / "exercises/ex04_bundle.py")
    wanted = [clone.find("3.2"), clone.find("4.1")]
    limit = 6.0 if kind == "endless loop" else 60.0
    broken = grade_one(clone, clone.root / "exercises", wanted[0], 1, limit)
    assert (broken.status, broken.points) == (status, 0), broken
    assert says(broken, message)
    assert grade_one(clone, clone.root / "exercises", wanted[1], 1).status == "PASS"


def says(grade: Grade, pattern: str) -> bool:
    return re.search(pattern, grade.message, re.DOTALL) is not None


def test_prints_do_not_disturb_and_an_error_names_the_students_line(clone: Course) -> None:
    path = clone.root / "exercises/ex03_window.py"
    text = (ROOT / "solutions/ex03_window.py").read_text()
    path.write_text(text.replace("self._history.append(kept)", "print('[{]', self.nothing)"))
    found = grade_one(clone, path.parent, clone.find("3.2"), 1)
    assert found.status == "ERROR"
    assert says(found, r"ex03_window.py:\d+: print\('\[\{\]', self.nothing\).*AttributeError")


def test_one_exercise_is_judged_without_the_others_of_its_file(clone: Course) -> None:
    """Only 3.3 is solved; 3.2, which calls it and which it is tested through, stays a stub."""
    solved = (ROOT / "solutions/ex03_window.py").read_text()
    function = find_function(ast.parse(solved), "Window._forget_oldest")
    body = "\n".join(solved.splitlines()[function.body[0].end_lineno : function.end_lineno])
    path = clone.root / "exercises/ex03_window.py"
    stub = find_function(ast.parse(path.read_text()), "Window._forget_oldest")
    lines = path.read_text().splitlines()
    lines[stub.body[0].end_lineno : stub.end_lineno] = body.splitlines()
    path.write_text("\n".join(lines) + "\n")
    assert grade_one(clone, path.parent, clone.find("3.3"), 1).status == "PASS"
    assert grade_one(clone, path.parent, clone.find("3.2"), 1).status == "TODO"


def test_every_exercise_file_has_its_tests(course: Course) -> None:
    present = {path.name for path in (ROOT / "tests/exercises").glob("test_ex*.py")}
    assert present == {exercise_tests(course, e).name for e in course.exercises}


# The commands


def run(course: Course, monkeypatch: pytest.MonkeyPatch, *args: object) -> Any:
    monkeypatch.chdir(course.root)
    return CliRunner().invoke(app, [str(a) for a in args])


def test_grade_reports_writes_json_and_remembers(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(ROOT / "solutions/ex04_bundle.py", clone.root / "exercises/ex04_bundle.py")
    done = run(clone, monkeypatch, "grade", "4", "--seed", 5, "--json", "out.json")
    assert done.exit_code == 0
    assert "exercises/ex04_bundle.py (edited)  seed=5" in done.output
    result = json.loads((clone.root / "out.json").read_text())
    assert (result["impl"], result["seed"], result["total"], result["max"]) == ("mine", 5, 12, 12)
    assert set(result["exercises"][0]) == {"id", "title", "points", "max", "status", "message"}
    progress = run(clone, monkeypatch, "progress")
    assert "12/100" in progress.output
    assert "next: 0.1" in progress.output


def test_grade_of_unsolved_exercises_fails(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(clone, monkeypatch, "grade")
    assert done.exit_code == 1
    assert "total 0/100" in done.output
    assert done.output.count("TODO") == len(clone.exercises)


def test_a_class_is_graded_to_a_table(clone: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for student in ("ada", "bob"):
        (tmp_path / "class" / student).mkdir(parents=True)
        for file in clone.files:
            shutil.copyfile(clone.root / "exercises" / file, tmp_path / "class" / student / file)
    shutil.copyfile(ROOT / "solutions/ex04_bundle.py", tmp_path / "class/ada/ex04_bundle.py")
    done = run(clone, monkeypatch, "grade", "4", "--class", tmp_path / "class", "--csv", tmp_path / "grades.csv")
    assert done.exit_code == 0
    assert (tmp_path / "grades.csv").read_text().split() == ["student,4.1,4.2,4.3,total", "ada,4,3,5,12", "bob,0,0,0,0"]


def test_hints_come_one_at_a_time(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [run(clone, monkeypatch, "hint", "3.2").output for _ in range(4)]
    assert [f"hint {n} of 3" in text for n, text in zip((1, 2, 3, 1), shown, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["hint", "9.9"], "no exercise '9.9'"),
        (["grade", "--submission", "nowhere"], "nowhere is no folder"),
        (["grade", "--class", "nowhere"], "nowhere holds no folders"),
        (["grade", "--impl", "hers"], "takes mine or solutions"),
        (["bench", "--impl", "ref,ex77=mine"], "not understood at 'ex77=mine'"),
    ],
)
def test_wrong_arguments_are_one_line(
    args: list[str], words: str, clone: Course, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone.root)
    assert words in failing_line(args, monkeypatch, capsys)


@pytest.mark.parametrize("command", ["grade", "progress", "hint"])
def test_outside_a_clone_the_course_says_so(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = failing_line([command, *(["3.2"] if command == "hint" else [])], monkeypatch, capsys)
    assert "not in a clone of the course" in line


def failing_line(args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", ["flashlite", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


# The plug


def test_impl_chooses_files_by_slot(course: Course) -> None:
    assert choose(course, "ref") == {}
    chosen = choose(course, "solutions,ex03=ref")
    assert "flashlite.engine.window" not in chosen
    assert set(chosen) == {e.module for e in course.exercises if e.slot != "ex03"}
    mine = choose(course, "ref,ex03=mine")
    assert set(mine) == {"flashlite.engine.window"}
    assert describe(course, mine)[0].startswith("ex03 → exercises/ex03_window.py (")


def test_a_clone_is_found_from_inside_and_a_malformed_manifest_is_named(clone: Course) -> None:
    assert find_course(clone.root / "exercises").root == clone.root.resolve()
    (clone.root / "course.toml").write_text("[chapters]\n0 = 'x'\n[[exercise]]\nid = '0.1'\n")
    with pytest.raises(FlashliteError, match=r"course.toml is malformed"):
        read_course(clone.root)


def test_stub_digests_are_those_of_the_files(course: Course) -> None:
    assert set(json.loads((ROOT / STUBS).read_text())) == set(course.files)
