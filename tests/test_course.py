"""The course around the engine: files made from it, grading that survives anything, the engine on students' code."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sync
import torch
from conftest import ROOT, pytest_report_header
from typer.testing import CliRunner

from flashlite.cli.main import app, main
from flashlite.cli.unsolved import check_solved
from flashlite.course import chapter
from flashlite.course.generate import find_function, generated_files, stub
from flashlite.course.grade import Grade, exercise_tests, grade, grade_one, totals
from flashlite.course.impl.choose import choose, describe, functions_of
from flashlite.course.manifest import STUBS, Course, find_course, read_course
from flashlite.course.plug import load
from flashlite.errors import FlashliteError
from flashlite.storage.bundle import FFNShape
from flashlite.storage.store import Store


def edit(course: Course, file: str, old: str, new: str) -> Path:
    path = course.root / "exercises" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


# The manifest and what is made from it

CORE = [exercise for exercise in read_course(ROOT).exercises if exercise.chapter not in read_course(ROOT).electives]
MOST = sum(exercise.points for exercise in CORE)
DESIGNS = ("2.6", "2.7", "6.2", "8.1")  # whose tests record what an answer reached


def test_points_sum_to_a_hundred_and_ids_are_in_order(course: Course) -> None:
    assert MOST == 100
    assert len(CORE) == 28
    assert {exercise.id for exercise in CORE if not exercise.points} == {"0.1", "0.2", "2.2", "4.2"}
    ids = [tuple(map(int, exercise.id.split("."))) for exercise in course.exercises]
    assert ids == sorted(set(ids))
    assert {exercise.chapter for exercise in course.exercises} == set(course.chapters)


def test_contracts_are_whole(course: Course) -> None:
    for e in course.exercises:
        assert 5 <= e.minutes <= 60
        assert 1 <= e.difficulty <= 3
        assert 3 <= len(e.hints) <= 5
        for text in (e.title, e.task, e.example, e.why, e.mistakes, e.paper, *e.hints):
            assert len(text.strip()) > 3, f"{e.id} lacks a text"


def test_tests_give_just_the_points_of_the_manifest(course: Course) -> None:
    worth: Counter[str] = Counter()
    marks: list[pytest.Mark | None] = []

    class Points:
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            marks.extend(item.get_closest_marker("points") for item in items)
            for mark in filter(None, marks):
                worth[mark.args[0]] += mark.args[1]

    pytest.main([str(ROOT / "tests/exercises"), "--collect-only", "-q", "--noconftest"], plugins=[Points()])
    assert dict(worth) == {e.id: e.points for e in course.exercises}
    for mark in marks:
        assert mark is not None, "each test says which exercise it belongs to"
        assert (mark.args[1] > 0) == (course.find(mark.args[0]).points > 0), "a test earns nothing in warm-ups alone"


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


@pytest.mark.slow
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
    assert totals(course, grades) == {"total": (MOST, MOST), "elective 9": (15, 15), "elective 10": (10, 10)}
    assert {g.id: len(g.reached) for g in grades if g.reached} == dict.fromkeys(DESIGNS, 1)


BROKEN = {
    "syntax error": ("def merge_adjacent(", "def merge_adjacent((", "ERROR", r"ex00_reads.py:\d+: .*SyntaxError"),
    "endless loop": ("IOVEC = np", "while True:\n    pass\n\n\nIOVEC = np", "FAIL", "endless loop"),
    "exit": ("IOVEC = np", "raise SystemExit(0)\n\n\nIOVEC = np", "ERROR", "SystemExit"),
    "hard exit": ("IOVEC = np", "import os\nos._exit(0)\n\n\nIOVEC = np", "ERROR", "left with code 0"),
    "segfault": ("IOVEC = np", "import ctypes\nctypes.string_at(0)\n\n\nIOVEC = np", "ERROR", "SIGSEGV"),
    "import": ("IOVEC = np", "import not_there\n\n\nIOVEC = np", "ERROR", "ModuleNotFoundError.*not_there"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_judged_and_leave_the_others_alone(kind: str, clone: Course) -> None:
    old, new, status, message = BROKEN[kind]
    edit(clone, "ex00_reads.py", old, new)
    shutil.copyfile(ROOT / "solutions/ex07_speculative.py", clone.root / "exercises/ex07_speculative.py")
    wanted = [clone.find("0.1"), clone.find("7.1")]
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


# Warm-ups, which are graded and earn nothing


def test_a_warm_up_passes_or_fails_and_has_no_points(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clone.root / "exercises/ex00_reads.py"
    assert "# TODO 0.1  merge adjacent records into one read (warm-up, 15 minutes" in path.read_text()
    assert "| 0.1 merge adjacent records into one read |" in (ROOT / "exercises/README.md").read_text()
    right = (ROOT / "solutions/ex00_reads.py").read_text()
    path.write_text(right.replace("% most == 0", "% (most + 1) == 0"))
    wrong = run(clone, monkeypatch, "grade", "0.1", "--json", "out.json")
    assert wrong.exit_code == 1
    assert re.search(r"0\.1 merge .* FAIL +warm-up", wrong.output)
    (result,) = json.loads((clone.root / "out.json").read_text())["exercises"]
    assert (result["status"], result["points"], result["max"]) == ("FAIL", 0, 0)
    assert wrong.output.splitlines()[-1] == "warm-ups passed 0/1 → out.json"
    assert "A read may have `most` records, not more." in result["message"]
    path.write_text(right)
    done = run(clone, monkeypatch, "grade", "0.1")
    assert done.exit_code == 0
    assert re.search(r"0\.1 merge .* PASS +warm-up", done.output)
    assert done.output.splitlines()[-1].startswith("warm-ups passed 1/1 → ")
    assert "0/0" not in wrong.output + done.output
    assert "next: 0.2" in run(clone, monkeypatch, "progress").output


# What a file has without its body


def test_what_a_file_has_without_its_body_is_the_engines(clone: Course) -> None:
    for name in clone.files:
        tree = ast.parse((clone.root / "exercises" / name).read_text())
        for function in clone.hidden(name):
            assert "NotImplementedError" in ast.unparse(find_function(tree, function).body[-1])
    module = "flashlite.engine.window"
    chosen = choose(clone, "ref,ex03=mine")[module]
    assert chosen.from_reference == ["Window.amend"]
    window = load(chosen, module).Window(8, 2, 8)
    window._history.append(np.array([1, 2]))
    with pytest.raises(NotImplementedError, match=r"exercise 3\.2"):  # which the engine's amend calls
        window.amend(np.array([1, 2]))


def test_exercises_are_counted_in_the_courses_order(course: Course) -> None:
    names = functions_of(choose(course, "mine"))
    assert list(names) == [exercise.id for exercise in course.exercises]


# Files as editors, git and archives leave them


def rewrite(path: Path, change: Callable[[str], bytes]) -> None:
    path.write_bytes(change(path.read_text(encoding="utf-8")))


def crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


@pytest.fixture
def crlf_clone(clone: Course) -> Course:
    """What git gives on Windows, or with core.autocrlf=true: every line of every file ends in CRLF."""
    for path in clone.root.rglob("*.*"):
        if path.suffix in {".py", ".toml", ".json"}:
            rewrite(path, crlf)
    return clone


def test_in_a_clone_with_crlf_untouched_stubs_are_to_do_and_none_is_run(
    crlf_clone: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)  # running one would take as long as grading it
    grades = grade(crlf_clone, crlf_clone.root / "exercises", crlf_clone.exercises, seed=1)
    assert {(g.status, g.points) for g in grades} == {("TODO", 0)}


def test_in_a_clone_with_crlf_nothing_counts_as_begun(
    crlf_clone: Course, tiny_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(crlf_clone.root)
    assert all("(untouched)" in line for line in describe(crlf_clone, choose(crlf_clone, "mine")))
    assert chapter.run_yours(tiny_store, 7) is None
    assert "Nothing of yours to run yet" in capsys.readouterr().out
    assert sync.edited_exercises(crlf_clone) == []
    assert sync.stale_files(crlf_clone) == []


def test_in_a_clone_with_crlf_work_is_graded(crlf_clone: Course) -> None:
    path = crlf_clone.root / "exercises/ex04_bundle.py"
    path.write_bytes((crlf_clone.root / "solutions/ex04_bundle.py").read_bytes())
    assert b"\r\n" in path.read_bytes()
    assert crlf_clone.is_edited(path)
    assert grade_one(crlf_clone, path.parent, crlf_clone.find("4.1"), seed=1).status == "PASS"


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
def test_git_gives_lf_whatever_its_settings(tmp_path: Path) -> None:
    for name in (".gitattributes", "exercises/ex04_bundle.py"):
        shutil.copyfile(ROOT / name, tmp_path / Path(name).name)

    def git(*args: str) -> None:
        subprocess.run(["git", "-c", "core.autocrlf=true", *args], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("add", ".gitattributes", "ex04_bundle.py")
    (tmp_path / "ex04_bundle.py").unlink()
    git("checkout", "--", "ex04_bundle.py")
    assert (tmp_path / "ex04_bundle.py").read_bytes() == (ROOT / "exercises/ex04_bundle.py").read_bytes()


@pytest.mark.parametrize("change", [crlf, lambda text: text.replace("\n", "  \n").encode() + b"\n\n",
                                    lambda text: text.rstrip().encode(), lambda text: text.encode("utf-8-sig")],
                         ids=["CRLF", "blanks", "no last newline", "byte-order mark"])  # fmt: skip
def test_a_stub_that_an_editor_only_saved_is_untouched(clone: Course, change: Callable[[str], bytes]) -> None:
    for name in clone.files:
        rewrite(clone.root / "exercises" / name, change)
        assert not clone.is_edited(clone.root / "exercises" / name)


def first_line(line: str, encoding: str) -> Callable[[str], bytes]:
    return lambda text: f"{line}\n# é\n{text}".encode(encoding)


@pytest.mark.parametrize(
    "change",
    [
        crlf, lambda text: text.replace("\n", "\r").encode(), first_line("", "utf-8-sig"),
        first_line("# -*- coding: latin-1 -*-", "latin-1"), first_line("# vim: set fileencoding=cp1252 :", "cp1252"),
    ],
    ids=["CRLF", "CR", "byte-order mark", "latin-1", "cp1252"],
)  # fmt: skip
def test_a_file_counts_as_python_reads_it(clone: Course, change: Callable[[str], bytes]) -> None:
    path = clone.root / "exercises/ex07_speculative.py"
    path.write_bytes(change((ROOT / "solutions/ex07_speculative.py").read_text(encoding="utf-8")))
    compile(path.read_bytes(), path, "exec")
    assert clone.is_edited(path)
    assert grade_one(clone, path.parent, clone.find("7.1"), seed=1).status == "PASS"


@pytest.mark.parametrize(
    "change",
    [
        first_line("", "utf-16"), first_line("", "utf-32"), first_line("", "utf-16-le"), first_line("é = 1", "latin-1"),
        first_line("# coding: nonsense", "utf-8"), first_line("# coding: rot13", "utf-8"),
        first_line("# coding: latin-1", "utf-8-sig"),
    ],
    ids=["UTF-16", "UTF-32", "no mark", "latin-1 without its line", "unknown", "no text", "contradiction"],
)  # fmt: skip
def test_a_file_that_python_cannot_read_is_named(clone: Course, change: Callable[[str], bytes]) -> None:
    path = clone.root / "exercises/ex07_speculative.py"
    path.write_bytes(change((ROOT / "solutions/ex07_speculative.py").read_text(encoding="utf-8")))
    with pytest.raises((SyntaxError, ValueError)):
        compile(path.read_bytes(), path, "exec")
    assert clone.is_edited(path)
    found = grade_one(clone, path.parent, clone.find("7.1"), seed=1)
    assert (found.status, found.points) == ("ERROR", 0)
    assert found.message == "ex07_speculative.py isn't saved as text that Python can read: save it as UTF-8"


def test_a_list_of_stubs_that_is_missing_or_damaged_is_named(clone: Course) -> None:
    for content in (b"", b"[1]", b"\xff"):
        (clone.root / STUBS).write_bytes(content)
        with pytest.raises(FlashliteError, match=r"stubs.json is missing or damaged: restore it"):
            clone.is_edited(clone.root / "exercises/ex04_bundle.py")
    (clone.root / STUBS).unlink()
    with pytest.raises(FlashliteError, match=r"stubs.json is missing or damaged: restore it"):
        clone.is_edited(clone.root / "exercises/ex04_bundle.py")


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
    assert (result["impl"], result["seed"], result["total"], result["max"]) == ("mine", 5, 7, 7)
    assert set(result["exercises"][0]) == {"id", "title", "points", "max", "status", "message", "hints", "reached"}
    progress = run(clone, monkeypatch, "progress")
    assert f"7/{MOST}" in progress.output
    assert "next: 0.1" in progress.output


def test_grade_of_unsolved_exercises_fails(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(clone, monkeypatch, "grade")
    assert done.exit_code == 1
    assert f"total 0/{MOST} →" in done.output
    assert done.output.splitlines()[-2:] == ["elective 9 0/15", "elective 10 0/10"]
    assert done.output.count("TODO") == len(clone.exercises)


# An elective's points are its own


def test_an_elective_counts_apart_from_the_hundred(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_in(clone.root / "mine", *[name for name in clone.files if not name.startswith(("ex09", "ex10"))])
    for name in clone.files:
        if not name.startswith(("ex09", "ex10")):
            shutil.copyfile(clone.root / "mine" / name, clone.root / "exercises" / name)
    monkeypatch.setattr("flashlite.cli.course.grade", judged_by_what_is_written)
    done = run(clone, monkeypatch, "grade", "--json", "out.json")
    assert done.exit_code == 0, "an elective that isn't begun and that nobody asked for fails nobody"
    result = json.loads((clone.root / "out.json").read_text())
    assert (result["total"], result["max"], result["electives"]) == (
        MOST,
        MOST,
        {"elective 9": {"total": 0, "max": 15}, "elective 10": {"total": 0, "max": 10}},
    )
    asked = run(clone, monkeypatch, "grade", "9")
    assert asked.exit_code == 1
    assert "elective 9 0/15 →" in asked.output
    assert "total" not in asked.output
    shutil.copyfile(ROOT / "solutions/ex09_early.py", clone.root / "exercises/ex09_early.py")
    done = run(clone, monkeypatch, "grade")
    assert done.exit_code == 0
    assert done.output.splitlines()[-2:] == ["elective 9 7/15", "elective 10 0/10"]
    done = run(clone, monkeypatch, "progress")
    assert f"{MOST}/{MOST} points" in done.output
    assert "(elective)" in done.output
    assert " 7/15 " in done.output


def judged_by_what_is_written(course: Course, folder: Path, exercises: Any, *_: object) -> list[Grade]:
    """A grading that takes no time: what was edited passes."""
    return [
        Grade(e.id, e.title, e.points * edited, e.points, "PASS" if edited else "TODO", "")
        for e in exercises
        for edited in [course.is_edited(folder / e.file)]
    ]


def test_a_class_has_a_column_for_an_elective(clone: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hand_in(tmp_path / "class" / "ada", "ex04_bundle.py", "ex09_early.py")
    monkeypatch.setattr("flashlite.cli.teach.grade_folders", judged_all)
    done = run(clone, monkeypatch, "grade", "--class", tmp_path / "class", "--csv", tmp_path / "grades.csv")
    first, ada = ((tmp_path / "grades.csv").read_text()).splitlines()
    assert first.endswith(",9.1,9.2,9.3,10.1,10.2,total,elective 9,elective 10,hints")
    assert ada.endswith(",0,0,7,0,0,7,7,0,0")
    assert f"7/{MOST}  elective 9 7/15  elective 10 0/10" in done.output


def judged_all(course: Course, folders: list[Path], exercises: Any, *_: object) -> Iterator[list[Grade]]:
    """The same of a class, where nothing is handed in for some exercises."""
    for folder in folders:
        handed_in = [(e, (folder / e.file).is_file()) for e in exercises]
        yield [
            Grade(e.id, e.title, e.points * there, e.points, "PASS" if there else "ERROR", "") for e, there in handed_in
        ]


def test_a_class_is_graded_to_a_table(clone: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for student in ("ada", "bob"):
        (tmp_path / "class" / student).mkdir(parents=True)
        for file in clone.files:
            shutil.copyfile(clone.root / "exercises" / file, tmp_path / "class" / student / file)
    shutil.copyfile(ROOT / "solutions/ex04_bundle.py", tmp_path / "class/ada/ex04_bundle.py")
    done = run(clone, monkeypatch, "grade", "4", "--class", tmp_path / "class", "--csv", tmp_path / "grades.csv")
    assert done.exit_code == 0
    assert (tmp_path / "grades.csv").read_text().split() == [
        "student,4.1,4.2,4.3,total,hints", "ada,3,PASS,4,7,0", "bob,0,TODO,0,0,0"
    ]  # fmt: skip


def hand_in(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        shutil.copyfile(ROOT / "solutions" / name, folder / name)


def test_a_class_holds_what_students_handed_in_and_nothing_else(
    clone: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Folders of systems and tools are no students; files may lie one folder deeper; nothing handed in is 0 points."""
    classroom = tmp_path / "class"
    hand_in(classroom / "ada" / "exercises", "ex04_bundle.py")
    hand_in(classroom / "ada" / "solutions", "ex04_bundle.py")
    hand_in(classroom / "ada" / ".ipynb_checkpoints", "ex04_bundle.py")
    hand_in(classroom / "bob" / "course-main" / "exercises", "ex03_window.py")  # of another chapter
    hand_in(classroom / "bob" / "__MACOSX" / "exercises", "ex04_bundle.py")
    hand_in(classroom / "cleo")
    hand_in(classroom / "dora" / "thesis", "ex04_bundle.py")
    for name in (".ipynb_checkpoints", "__MACOSX", ".git", ".vscode", "__pycache__"):
        hand_in(classroom / name, "ex04_bundle.py")
    (classroom / "grades.xlsx").touch()
    done = run(clone, monkeypatch, "grade", "4.1", "--class", classroom, "--csv", tmp_path / "grades.csv")
    assert done.exit_code == 0
    lines = (tmp_path / "grades.csv").read_text().split()
    assert lines == ["student,4.1,total,hints", "ada,3,3,0", "bob,0,0,0", "cleo,0,0,0", "dora,3,3,0"]
    assert [line.split("  ")[-1] for line in done.output.splitlines() if "no exercise files" in line] == [
        "no exercise files found in it"
    ]
    assert "4 students" in done.output


def test_a_submission_is_found_one_folder_deeper(
    clone: Course, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hand_in(tmp_path / "ada" / "course-main" / "exercises", "ex04_bundle.py")
    (tmp_path / "ada" / "__MACOSX").mkdir()
    done = run(clone, monkeypatch, "grade", "4.1", "--submission", tmp_path / "ada")
    assert (done.exit_code, "total 3/3" in done.output) == (0, True)


STATES = {
    "nothing": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe{",
    "a list": b"[1, 2]",
    "a number": b"3",
    "nested too deeply": b'{"3.2": ' + b"[" * 100_000,
    "not a number": b'{"3.2": NaN}',
    "other kinds": json.dumps({"3.2": "PASS", "3.3": 7, "3.4": None, "4.1": [1], "4.2": {}}).encode(),
    "other points": json.dumps({
        "3.1": {"points": "4", "status": "PASS"}, "3.2": {"points": 2.5, "status": "FAIL"},
        "3.3": {"points": True, "status": "PASS"}, "3.4": {"status": "PASS"}, "4.1": {"points": None, "status": "PASS"},
    }).encode(),
    "other statuses": json.dumps({
        "3.1": {"points": 4, "status": "DONE"}, "3.2": {"points": 4, "status": ["PASS"]}, "3.3": {"points": 4},
        "3.4": {"points": 1, "status": {}}, "4.1": {"points": 3, "status": 1},
    }).encode(),
    "exercises that are gone": json.dumps({"9.9": {"points": 50, "status": "PASS"}}).encode(),
    "nothing written yet": json.dumps({"3.2": {"points": 3, "status": "TODO"}}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_progress_takes_only_what_it_understands(name: str, clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone.root / ".flashlite").mkdir()
    (clone.root / ".flashlite/progress.json").write_bytes(STATES[name])
    done = run(clone, monkeypatch, "progress")
    assert done.exit_code == 0, done.exception
    assert f"0/{MOST} points" in done.output
    assert "next: 0.1" in done.output


def test_progress_never_passes_what_an_exercise_is_worth(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a change of the course: 3.1 is worth 3 points, 3.2 is worth 6, 0.1 nothing."""
    noted = {"3.1": ("PASS", 9), "3.2": ("FAIL", 60), "3.3": ("FAIL", -5), "4.1": ("ERROR", 1), "7.9": ("PASS", 7)}
    noted |= {"0.1": ("PASS", 5), "0.2": ("FAIL", 3)}
    (clone.root / ".flashlite").mkdir()
    (clone.root / ".flashlite/progress.json").write_text(
        json.dumps({identifier: {"points": p, "status": s} for identifier, (s, p) in noted.items()})
    )
    done = run(clone, monkeypatch, "progress")
    assert f"9/{MOST} points" in done.output
    assert re.search(r"3 Windowing.* 8/14 ", done.output)
    assert "next: 0.2" in done.output
    run(clone, monkeypatch, "grade", "7")
    assert set(json.loads((clone.root / ".flashlite/progress.json").read_text())) == {
        "0.1", "0.2", "3.1", "3.2", "3.3", "4.1", "7.1", "7.2"
    }  # fmt: skip


@pytest.mark.parametrize(
    "noted",
    [
        b"{", b'{"3.2": "x"}', b'{"3.2": null}', b'{"3.2": {"shown": -7, "before": 3}}', b'{"3.2": [1]}', b"[3]",
        b'{"3.2": {"shown": true, "before": [0, 9, "1", 1.0, true]}}',
    ],
)  # fmt: skip
def test_hints_begin_anew_where_their_state_is_damaged(
    noted: bytes, clone: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone.root / "exercises/hints.json").write_bytes(noted)
    assert re.search(r"hint 1 of \d", run(clone, monkeypatch, "hint", "3.2").output)
    assert json.loads((clone.root / "exercises/hints.json").read_text())["3.2"] == {"shown": 1, "before": [1]}


def test_hints_come_one_at_a_time(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(clone.find("3.2").hints)
    for number in (*range(1, count + 1), 1):
        assert f"hint {number} of {count}" in run(clone, monkeypatch, "hint", "3.2").output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["hint", "9.9"], "no exercise '9.9'"),
        (["grade", "--submission", "nowhere"], "nowhere is no folder"),
        (["grade", "--class", "nowhere"], "nowhere holds no folders with exercise files"),
        (["grade", "--class", "."], ". is a clone of the course: name the folder that holds"),
        (["grade", "--class", "flashlite"], "flashlite holds no folders with exercise files"),
        (["grade", "--submission", "tests"], "tests holds no exercise files"),
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


# A plain run of the exercises' tests


@pytest.mark.parametrize(
    ("args", "command"),
    [
        (["tests/exercises/test_ex07_speculative.py::test_tokens_a_call"], "`flashlite grade 7`"),
        (["tests/exercises/test_ex00_cost.py", "tests/exercises/test_ex00_reads.py"], "`flashlite grade 0`"),
        (["tests/exercises/test_ex00_cost.py", "tests/exercises/test_ex07_speculative.py"], "`flashlite grade`"),
        (["tests/exercises"], "`flashlite grade`"),
        (["tests"], None),
        (["tests/exercises", "tests/test_cost.py"], None),
    ],
)
def test_a_plain_run_says_that_it_tests_the_engine(
    args: list[str], command: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    lines = pytest_report_header(SimpleNamespace(args=args))  # type: ignore[arg-type]
    assert bool(lines) == (command is not None)
    assert command is None or "on the engine's own code, not on your files in exercises/" in lines[0]
    assert command is None or lines[1] == f"To test your exercises, run {command}."


def test_the_line_is_above_the_results_also_where_pytest_is_quiet() -> None:
    one = "tests/exercises/test_ex07_speculative.py::test_tokens_a_call"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", one]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("on the engine's own code") == 1
    assert done.stdout.index("on the engine's own code") < done.stdout.index("1 passed")


# The plug


def test_impl_chooses_files_by_slot(course: Course) -> None:
    assert choose(course, "ref") == {}
    chosen = choose(course, "solutions,ex03=ref")
    assert "flashlite.engine.window" not in chosen
    assert set(chosen) == {e.module for e in course.exercises if e.slot != "ex03"}
    mine = choose(course, "ref,ex03=mine")
    assert set(mine) == {"flashlite.engine.window"}
    assert describe(course, mine)[0].startswith("ex03 → exercises/ex03_window.py (")


@pytest.mark.parametrize(
    ("impl", "words"),
    [
        ("ref,5.1=mine,ex05=ours", "not understood at 'ex05=ours': write mine, solutions or ref, or ref,3.2=mine"),
        ("ref,5.9=mine", "not understood at '5.9=mine'"), ("=mine", "not understood at '=mine'"),
        ("mine,5.1=solutions", "asks for two files of the name ex05_pool.py: write ref in place of solutions"),
    ],
)  # fmt: skip
def test_impl_that_says_nothing_clear_is_named(impl: str, words: str, course: Course) -> None:
    with pytest.raises(FlashliteError) as refused:
        choose(course, impl)
    assert words in str(refused.value)


def test_impl_takes_one_exercise_and_the_rest_of_its_file_is_the_engines(clone: Course) -> None:
    name, module = "ex05_pool.py", "flashlite.engine.pool"
    stubs = stub(clone.root, clone.files[name][1:], clone.hidden(name))  # all but 5.1, which has its body
    (clone.root / "exercises" / name).write_text(stubs)
    plugs = choose(clone, "ref,5.1=mine")
    assert set(plugs) == {module}
    assert describe(clone, plugs) == [f"5.1 → exercises/{name} (edited)"]
    assert describe(clone, choose(clone, "ref,ex05=mine,5.2=ref"))[0].startswith("5.1, 5.3 → ")
    assert plugs[module].counted == {"Pool.place": "5.1"}
    assert set(clone.hidden(name)) < set(plugs[module].from_reference)
    shape, bias = FFNShape(16, 8, 4, 64), torch.zeros(16)
    pool = load(plugs[module], module).Pool(6, shape, torch.float32, bias)
    pool.place(np.array([7, 3, 9, 4, 8]), np.zeros(0, np.int64))
    pool.place(np.zeros(0, np.int64), np.array([7, 3, 8]))  # leaves holes, which are the engine's to fill
    assert sorted(pool.neurons()) == [4, 9]
    whole = load(choose(clone, "ref,ex05=mine")[module], module).Pool(6, shape, torch.float32, bias)
    whole.place(np.array([7, 3]), np.zeros(0, np.int64))
    with pytest.raises(NotImplementedError, match=r"exercise 5\.2"):
        whole.place(np.zeros(0, np.int64), np.array([7]))


@pytest.mark.parametrize(
    ("impl", "called", "first", "instead"),
    [
        ("ref,ex05=mine", ["5.1", "5.2", "5.3"], "5.2", "ref,5.1=mine"),
        ("ref,5.1=mine,5.2=mine", ["5.1", "5.2"], "5.2", "ref,5.1=mine"),
        ("ref,ex05=mine,contest=mine", ["5.2"], "5.2", "ref,contest=mine"),
        ("mine", ["3.2", "5.1"], "3.2", "mine,3.2=ref"),
        ("mine", ["3.2", "5.1", "5.2"], "3.2", "ref,5.1=mine"),
        ("ref,ex03=solutions,ex05=mine", ["3.2", "5.2"], "5.2", "ref,3.2=solutions"),
        ("ref,ex05=mine", ["5.2"], "5.2", ""),
    ],
)
def test_a_stub_that_would_run_is_named_with_what_runs_without_it(
    impl: str, called: list[str], first: str, instead: str, clone: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ex05_pool.py"
    (clone.root / "exercises" / name).write_text(stub(clone.root, clone.files[name][1:], clone.hidden(name)))
    shutil.copyfile(ROOT / "exercises/contest_policy.py", clone.root / "exercises/contest_policy.py")
    monkeypatch.chdir(clone.root)
    with pytest.raises(FlashliteError) as refused:
        check_solved(impl, set(called))
    order, _, advice = str(refused.value).partition("; to run what is solved, write --impl ")
    assert re.fullmatch(
        rf"exercise {re.escape(first)}: delete this line and write .* \(exercises/ex\w+\.py:\d+\)", order
    )
    assert advice == instead
    if instead:
        check_solved(instead, set(called))  # runs no stub


def test_a_clone_is_found_from_inside_and_a_malformed_manifest_is_named(clone: Course) -> None:
    assert find_course(clone.root / "exercises").root == clone.root.resolve()
    (clone.root / "course.toml").write_text("[chapters]\n0 = 'x'\n[[exercise]]\nid = '0.1'\n")
    with pytest.raises(FlashliteError, match=r"course.toml is malformed"):
        read_course(clone.root)


def test_stub_digests_are_those_of_the_files(course: Course) -> None:
    assert set(json.loads((ROOT / STUBS).read_text())) == set(course.files)
