"""Modules that students put beside their exercise files: imported wherever their code runs, and in nobody's place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from flashlite.course import plug
from flashlite.course.classroom import beside
from flashlite.course.grade import Grade, grade_one
from flashlite.course.manifest import Course

FILE, MARK = "ex07_speculative.py", "def expected_tokens"


def hand_in(folder: Path, imports: str, **helpers: str) -> Path:
    """A solved file that imports what is beside it. helpers: the text of each, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    solved = (ROOT / "solutions" / FILE).read_text()
    (folder / FILE).write_text(solved.replace(MARK, f"{imports}\n\n\n{MARK}", 1))
    for name, text in helpers.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def judged(course: Course, folder: Path) -> Grade:
    return grade_one(course, folder, course.find("7.1"), seed=1)


def test_a_helper_is_imported_while_grading(course: Course, tmp_path: Path) -> None:
    folder = hand_in(tmp_path, "from my_helper import two\nassert two() == 2", my_helper="def two():\n    return 2\n")
    assert judged(course, folder).status == "PASS"


def test_a_missing_helper_is_named_with_the_students_line(course: Course, tmp_path: Path) -> None:
    found = judged(course, hand_in(tmp_path, "import my_helper"))
    assert found.status == "ERROR"
    assert found.message.splitlines()[-1] == "ModuleNotFoundError: No module named 'my_helper'"
    assert found.message.splitlines()[0].endswith(": import my_helper")


def test_no_helper_takes_the_place_of_the_engine_or_of_what_grades(course: Course, tmp_path: Path) -> None:
    """Also not of modules that are imported only later; and the teacher's tools can't be imported."""
    names = ("flashlite", "numpy", "pytest", "torch", "conftest", "json", "queue", "house")
    taken = {name: "raise RuntimeError('a helper took this name')\n" for name in names if name != "house"}
    folder = hand_in(tmp_path, "import house\nassert house.mine", **taken, house="mine = True\n")
    assert (ROOT / "tools/house.py").exists()
    assert judged(course, folder).status == "PASS"


@pytest.mark.parametrize("imports", ["from queue import my_function", "import queue\nqueue.my_function()"])
def test_a_helper_with_the_name_of_another_module_is_told_so(imports: str, course: Course, tmp_path: Path) -> None:
    found = judged(course, hand_in(tmp_path, imports, queue="def my_function():\n    pass\n"))
    assert found.status == "ERROR"
    last = "queue is another module's name too, and that one was imported: rename your queue.py"
    assert found.message.splitlines()[-1] == last


def test_other_errors_are_told_nothing_of_helpers() -> None:
    errors = [ImportError("x"), ImportError("x", name="json"), AttributeError("x", name="y", obj=json), ValueError("x")]
    assert [beside.hidden(error) for error in errors] == [""] * 4
    assert beside.hidden(AttributeError("x", name="y", obj=SimpleNamespace(__name__=3))) == ""


def test_a_helper_is_imported_where_the_engine_runs_on_exercises(clone: Course) -> None:
    text = "from my_helper import two\nprint('helped', two())"
    hand_in(clone.root / "exercises", text, my_helper="def two():\n    return 2\n")
    code = "import flashlite.bench.speculative as s; print(s.__file__)"
    (clone.root / "probe_it.py").write_text(code)
    plugs = plug.choose(clone, "ref,ex07=mine")
    command = plug.command(plugs, "probe_it")
    paths = os.pathsep.join(map(str, (ROOT, clone.root)))
    done = subprocess.run(
        command, cwd=clone.root.parent, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["helped 2", str(clone.root / "exercises" / FILE)], done.stderr


def test_a_notebook_reads_an_edited_helper_anew(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = hand_in(clone.root / "exercises", "import my_helper", my_helper="VALUE = 1\n")
    plugged = plug.choose(clone, "ref,ex07=mine")["flashlite.bench.speculative"]
    assert plug.load(plugged).my_helper.VALUE == 1
    (folder / "my_helper.py").write_text("VALUE = 22  # of another length, as Python tells edited files apart\n")
    assert plug.load(plugged).my_helper.VALUE == 22
    assert sys.path[-1] == str(folder.resolve())
    for name in ("my_helper", "ex07_speculative"):
        sys.modules.pop(name)


def test_a_helper_comes_with_a_submission(course: Course, tmp_path: Path) -> None:
    """As `--submission`, `--class` and Gradescope find it: in exercises/, one folder deeper."""
    from flashlite.course.grade import submission_folder

    inner = hand_in(tmp_path / "ada" / "course-main" / "exercises", "import my_helper", my_helper="")
    shutil.rmtree(inner / "__pycache__", ignore_errors=True)
    place = submission_folder(course, tmp_path / "ada")
    assert place == inner
    assert judged(course, place).status == "PASS"
