"""Gradescope's autograder: its results.json as documented, its zip, and the zip run as Gradescope runs it.

The format is that of Gradescope's "Autograder Specifications" (gradescope-autograders.readthedocs.io/en/latest/specs),
field by field; `faults` refuses whatever the page doesn't name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from flashlite.cli.main import app
from flashlite.course.classroom import gradescope
from flashlite.course.grade import Grade
from flashlite.course.manifest import Course
from flashlite.errors import FlashliteError, StoreError

NUMBER, TEXT = (int, float), (str,)
VISIBILITY = {"hidden", "after_due_date", "after_published", "visible"}
FORMATS = {"text", "html", "simple_format", "md", "ansi"}
TOP = {
    "score": NUMBER, "execution_time": NUMBER, "output": TEXT, "output_format": FORMATS, "test_output_format": FORMATS,
    "test_name_format": FORMATS, "visibility": VISIBILITY, "stdout_visibility": VISIBILITY, "extra_data": (dict,),
    "tests": (list,), "leaderboard": (list,),
}  # fmt: skip
TEST = {
    "score": NUMBER, "max_score": NUMBER, "status": {"passed", "failed"}, "name": TEXT, "name_format": FORMATS,
    "number": TEXT, "output": TEXT, "output_format": FORMATS, "tags": (list,), "visibility": VISIBILITY,
    "extra_data": (dict,),
}  # fmt: skip
posix_only = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


def faults(result: Any) -> list[str]:
    """What in a results.json isn't as the documentation says."""
    found = _faults(result, TOP, "top")
    for i, test in enumerate(result.get("tests", [])):
        found += _faults(test, TEST, f"test {i}")
        if "score" not in test and "score" not in result:
            found.append(f"test {i} needs a score where there is none on top")
    if "score" not in result and "tests" not in result:
        found.append("a score or tests are needed")
    return found


def _faults(entry: dict[str, Any], fields: dict[str, Any], where: str) -> list[str]:
    found = [f"{where}: {name} is not a field" for name in entry if name not in fields]
    for name, allowed in fields.items():
        value = entry.get(name)
        right = value in allowed if isinstance(allowed, set) else type(value) in allowed
        if name in entry and not right:
            found.append(f"{where}: {name} is {value!r}")
    return found


GRADES = [
    Grade("3.1", "unions", 4, 4, "PASS", ""),
    Grade("3.2", "the difference", 2, 6, "FAIL", "Neurons were read again.\nk = 4: at [2] found 1, expected 3", (1, 2)),
    Grade("3.3", "evict", 0, 5, "TODO", "exercise 3.3: delete this line"),
    Grade("3.4", "the budget", 0, 3, "ERROR", "ex03_window.py:9: x\nNameError: x"),
]


def test_grades_are_what_the_documentation_asks_for() -> None:
    result = gradescope.results(GRADES, seed=7, seconds=12.6)
    assert faults(result) == []
    assert (result["score"], result["execution_time"], result["extra_data"]["max_score"]) == (6, 13, 18)
    assert [(t["number"], t["score"], t["max_score"], t["status"]) for t in result["tests"]] == [
        ("3.1", 4, 4, "passed"), ("3.2", 2, 6, "failed"), ("3.3", 0, 5, "failed"), ("3.4", 0, 3, "failed")
    ]  # fmt: skip
    assert result["tests"][1]["output"].startswith("FAIL: Neurons were read again.\n")
    assert result["tests"][2]["output"] == "nothing written yet"
    assert (result["extra_data"]["hints"], result["extra_data"]["seed"]) == ({"3.2": [1, 2]}, 7)
    assert json.loads(json.dumps(result)) == result
    assert faults(gradescope.refused("no files")) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"points": 3}, "top: points is not a field"), ({"score": "6"}, "top: score is '6'"),
        ({"stdout_visibility": "shown"}, "top: stdout_visibility is 'shown'"),
        ({"tests": [{"score": 1, "status": "PASS"}]}, "test 0: status is 'PASS'"),
        ({"tests": [{"score": True}]}, "test 0: score is True"),
    ],
)  # fmt: skip
def test_what_the_documentation_does_not_name_would_be_found(change: dict[str, Any], fault: str) -> None:
    assert faults(gradescope.results(GRADES, 7, 1.0) | change) == [fault]


def test_the_zip_holds_what_grading_needs_and_no_solutions(course: Course, tmp_path: Path) -> None:
    out = tmp_path / "new" / "week.zip"
    out.parent.mkdir()
    done = CliRunner().invoke(app, ["gradescope", str(out), "3", "4.1"])
    assert done.exit_code == 0, done.output
    with zipfile.ZipFile(out) as archive:
        names, modes = archive.namelist(), {i.filename: i.external_attr >> 16 for i in archive.infolist()}
        assert archive.read("graded.txt") == b"3.1 3.2 3.3 3.4 4.1\n"
        assert archive.read("setup.sh") == (ROOT / "tools/gradescope/setup.sh").read_bytes()
    assert {"setup.sh", "run_autograder", "course.toml", "constraints.txt", "exercises/stubs.json"} <= set(names)
    assert "flashlite/engine/window.py" in names
    assert "tests/exercises/test_ex03_window.py" in names
    assert not [name for name in names if "solutions" in name or "__pycache__" in name or "/." in name]
    assert modes["run_autograder"] == modes["setup.sh"] == 0o755
    assert modes["course.toml"] == 0o644
    assert (
        f"{len(names)} files, 5 exercises, {sum(course.find(e).points for e in ['3.1', '3.2', '3.3', '3.4', '4.1'])}"
        in (done.output)
    )


def test_a_zip_that_cannot_be_written_is_one_line(course: Course, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        gradescope.write_zip(course, tmp_path / "nowhere" / "week.zip", course.exercises)
    done = CliRunner().invoke(app, ["gradescope", str(tmp_path / "week.zip"), "77"])
    assert isinstance(done.exception, FlashliteError)
    assert list(tmp_path.iterdir()) == []


# The zip in the layout that Gradescope documents, with another root


@pytest.fixture(scope="module")
def autograder(course: Course, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root as Gradescope builds it: the zip in source/, run_autograder beside it, an environment in venv/."""
    root = tmp_path_factory.mktemp("autograder")
    out = root / "autograder.zip"
    gradescope.write_zip(course, out, [course.find("4.1"), course.find("7.1")])
    with zipfile.ZipFile(out) as archive:
        archive.extractall(root / "source")
    out.unlink()
    shutil.copyfile(root / "source/run_autograder", root / "run_autograder")
    python = root / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (root / "submission_metadata.json").write_text("{}")
    return root


def run_autograder(root: Path, **variables: str) -> dict[str, Any]:
    """Run it as Gradescope does, from its root, and read what it leaves."""
    shutil.rmtree(root / "results", ignore_errors=True)
    (root / "results").mkdir()
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "run_autograder"], cwd=root, env=kept | {"AUTOGRADER": str(root)} | variables, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    result = json.loads((root / "results/results.json").read_text())
    assert faults(result) == [], done.stderr
    return result


def submit(root: Path, *files: Path) -> None:
    shutil.rmtree(root / "submission", ignore_errors=True)
    (root / "submission").mkdir()
    for file in files:
        shutil.copyfile(file, root / "submission" / file.name)


@posix_only
def test_a_submission_is_graded_as_gradescope_runs_it(autograder: Path, course: Course, tmp_path: Path) -> None:
    wrong = tmp_path / "ex07_speculative.py"
    solved = (ROOT / "solutions/ex07_speculative.py").read_text()
    mine = "def expected_tokens(acceptance, draft):\n    return my_helper.ONE\n"
    wrong.write_text(solved.replace("import annotations", "import annotations\nimport my_helper") + f"\n\n{mine}")
    (tmp_path / "my_helper.py").write_text("ONE = 1\n")
    submit(autograder, ROOT / "solutions/ex04_bundle.py", wrong, tmp_path / "my_helper.py")
    result = run_autograder(autograder)
    right, lost = result["tests"]
    assert (right["number"], right["status"], right["score"]) == ("4.1", "passed", course.find("4.1").points)
    assert (lost["number"], lost["status"], lost["score"]) == ("7.1", "failed", 0)
    assert "found 1, expected" in lost["output"]
    assert result["score"] == right["score"]
    assert sorted(path.name for path in (autograder / "source").iterdir() if path.name.startswith(".")) == []


@posix_only
def test_there_is_a_result_also_where_grading_is_impossible(autograder: Path) -> None:
    submit(autograder, ROOT / "README.md")
    result = run_autograder(autograder)
    assert (result["score"], result["tests"]) == (0, [])
    assert "holds no exercise files, such as ex00_reads.py" in result["output"]
    submit(autograder, ROOT / "solutions/ex04_bundle.py")
    python = autograder / "venv/bin/python"
    python.rename(python.with_name("lost"))
    try:
        result = run_autograder(autograder)
    finally:
        python.with_name("lost").rename(python)
    assert result["score"] == 0
    assert "tell your teacher" in result["output"]


@posix_only
def test_the_set_up_installs_by_the_constraints(autograder: Path, tmp_path: Path) -> None:
    """With stand-ins for all that it calls, which note how they were called."""
    root = tmp_path / "autograder"
    (root / "source").mkdir(parents=True)
    (root / "venv/bin").mkdir(parents=True)
    stand_in = '#!/bin/sh\necho "$(basename "$0") $*" >> "$CALLS"\n'
    tools = tmp_path / "bin"
    tools.mkdir()
    for path in (tools / "apt-get", tools / "python3", tools / "useradd", root / "venv/bin/pip"):
        path.write_text(stand_in)
        path.chmod(0o755)
    variables = os.environ | {
        "PATH": f"{tools}:/usr/bin:/bin", "AUTOGRADER": str(root), "CALLS": str(tmp_path / "calls"),
    }  # fmt: skip
    subprocess.run(["bash", autograder / "source/setup.sh"], env=variables, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert f"python3 -m venv {root}/venv" in calls
    source = f"{root}/source"
    assert f"pip install --no-cache-dir -c {source}/constraints.txt -e {source} pytest" in calls
    assert any(call.startswith("useradd") and call.endswith(" student") for call in calls)
