"""GitHub Classroom: a workflow that grades a student's repository, one step an exercise.

Classroom runs `.github/workflows/classroom.yml` of the assignment's template repository in each student's copy. A step
of its command grader passes where the command ends with code 0, and its reporter adds up the points.
"""

from __future__ import annotations

from collections.abc import Sequence

from flashlite.course.manifest import Exercise

PLACE = ".github/workflows/classroom.yml"
TIMEOUT = 5  # minutes for one exercise: `grade` itself ends it sooner

HEAD = """\
# Made by `flashlite classroom`: GitHub Classroom grades each push by it, one step an exercise. It belongs into
# {place} of the assignment's template repository.
name: Autograding Tests
on:
  push:
  repository_dispatch:
permissions:
  checks: write
  actions: read
  contents: read
jobs:
  run-autograding-tests:
    runs-on: ubuntu-latest
    if: github.actor != 'github-classroom[bot]'
    steps:
      - name: Checkout code
        uses: actions/checkout@v4
      - name: Python
        uses: actions/setup-python@v5
        with:
          python-version: "3.12"
          cache: pip
          cache-dependency-path: constraints.txt
      - name: Install
        run: pip install -c constraints.txt -e . pytest
"""
STEP = """\
      - name: {name}
        id: {step}
        uses: classroom-resources/autograding-command-grader@v1
        with:
          test-name: {name}
          command: flashlite grade {id}
          timeout: {timeout}
          max-score: {points}
"""
TAIL = """\
      - name: Autograding Reporter
        uses: classroom-resources/autograding-grading-reporter@v1
        env:
{results}
        with:
          runners: {steps}
"""


def workflow(exercises: Sequence[Exercise]) -> str:
    """The workflow that grades these exercises, as YAML. What gives no points gets no step."""
    graded = {f"exercise-{e.id.replace('.', '-')}": e for e in exercises if e.points}
    steps = [
        STEP.format(name=_quoted(f"{e.id} {e.title}"), step=step, id=e.id, timeout=TIMEOUT, points=e.points)
        for step, e in graded.items()
    ]
    outputs = [f'          {step.upper()}_RESULTS: "${{{{ steps.{step}.outputs.result }}}}"' for step in graded]
    tail = TAIL.format(results="\n".join(outputs), steps=",".join(graded))
    return HEAD.format(place=PLACE) + "".join(steps) + tail


def _quoted(text: str) -> str:
    """A text as a YAML string, whatever is in it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
