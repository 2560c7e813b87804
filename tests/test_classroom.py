"""The workflow for GitHub Classroom: valid, one step an exercise, and never run by this repository."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from typer.testing import CliRunner

from flashlite.cli.main import app
from flashlite.course.classroom.github import _quoted, workflow
from flashlite.course.manifest import Course
from flashlite.errors import FlashliteError

GRADER, REPORTER = (f"classroom-resources/autograding-{name}@v1" for name in ("command-grader", "grading-reporter"))


def steps(text: str) -> list[dict[str, Any]]:
    (job,) = yaml.safe_load(text)["jobs"].values()
    return job["steps"]


def test_each_exercise_has_a_step_and_the_reporter_reads_them_all(course: Course) -> None:
    *others, reporter = steps(workflow(course.exercises))
    graders = [step for step in others if step.get("uses") == GRADER]
    worth = {e.id: e.points for e in course.exercises if e.points}
    asked = {step["with"]["command"].removeprefix("flashlite grade "): step["with"]["max-score"] for step in graders}
    assert asked == worth
    assert [step["name"] for step in graders] == [f"{e.id} {e.title}" for e in course.exercises if e.points]
    assert reporter["uses"] == REPORTER
    runners = reporter["with"]["runners"].split(",")
    assert runners == [step["id"] for step in graders]
    assert reporter["env"] == {
        f"{runner.upper()}_RESULTS": f"${{{{ steps.{runner}.outputs.result }}}}" for runner in runners
    }


def test_the_command_writes_the_exercises_that_were_named(course: Course, tmp_path: Path) -> None:
    out = tmp_path / ".github/workflows/classroom.yml"
    done = CliRunner().invoke(app, ["classroom", str(out), "3.2", "4"])
    assert done.exit_code == 0, done.output
    found = [step["with"]["command"] for step in steps(out.read_text()) if step.get("uses") == GRADER]
    assert found == [f"flashlite grade {e}" for e in ("3.2", "4.1", "4.3")], "a warm-up gives no points"
    points = sum(course.find(e).points for e in ("3.2", "4.1", "4.2", "4.3"))
    assert f"4 exercises, {points} points" in done.output
    core = CliRunner().invoke(app, ["classroom", str(out)])
    assert f"{len([e for e in course.exercises if not course.is_elective(e.id)])} exercises" in core.output
    assert isinstance(CliRunner().invoke(app, ["classroom", str(out), "77"]).exception, FlashliteError)


def test_it_installs_what_this_repository_is_tested_with(course: Course) -> None:
    installs = [step["run"] for step in steps(workflow(course.exercises)) if "run" in step]
    assert installs == ["pip install -c constraints.txt -e . pytest"]
    assert (ROOT / "constraints.txt").is_file()


def test_this_repository_never_runs_it() -> None:
    assert list((ROOT / ".github").rglob("*")) == []


@pytest.mark.parametrize("text", ['a "b" c', "back\\slash", "x: y # z", "{a}", "é"])
def test_any_title_is_a_text_in_yaml(text: str) -> None:
    assert yaml.safe_load(f"name: {_quoted(text)}") == {"name": text}


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="there is no actionlint here")
def test_actionlint_finds_no_fault(course: Course, tmp_path: Path) -> None:
    path = tmp_path / "classroom.yml"
    path.write_text(workflow(course.exercises))
    done = subprocess.run(["actionlint", path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_steps_are_called_github_accepts(course: Course) -> None:
    for step in steps(workflow(course.exercises)):
        assert re.fullmatch(r"[A-Za-z_][\w-]*", step.get("id", "none"))
