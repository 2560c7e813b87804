"""The open-ended exercises: how often an answer is asked for, and what it reached beside the engine's own."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from conftest import ROOT, call

from flashlite.course.checks import SEED
from flashlite.course.grade import Grade, summarize
from flashlite.course.manifest import Course
from flashlite.training.thresholds import choose_levels

MOST_ANSWERS = 60  # of 2.6 that one grading may ask for; each measures a model ten times for each of its layers


def test_a_passed_design_says_what_it_reached_beside_the_engines_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = call(monkeypatch, capsys, "grade", "7.1", "8.1", "--impl", "solutions", "--seed", "3")
    assert code == 0, out
    found = re.findall(r"^    (\S.*)$", out, re.MULTILINE)
    assert len(found) == 1, "one line for the design, and none for the other exercise"
    told = re.fullmatch(r"read early: (\d+) of (\d+) neurons were needed, of the engine's own (\d+) of (\d+)", found[0])
    assert told is not None, found
    needed, read, own_needed, own_read = map(int, told.groups())
    assert 0 < needed <= read, "the solution is the engine's own code"
    assert (needed, read) == (own_needed, own_read)


def test_only_an_answer_that_passed_says_what_it_reached(course: Course) -> None:
    def graded(status: str) -> Grade:
        first = {"points": 2, "status": "PASS", "message": "", "reached": ["saved: 1 %"]}
        return summarize(course.find("2.6"), [first, {"points": 6, "status": status, "message": "", "reached": []}])

    assert graded("PASS").reached == ("saved: 1 %",)
    assert graded("FAIL").reached == ()


def test_no_answer_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests/exercises")
    tests, asked = importlib.import_module("test_ex02_thresholds"), list[tuple[bytes, float, int]]()

    def counted(
        nbytes: np.ndarray, measure: Callable[[Sequence[int]], float], budget: float, calls: int
    ) -> list[int]:  # fmt: skip
        asked.append((nbytes.tobytes(), budget, calls))
        return choose_levels(nbytes, measure, budget, calls)

    monkeypatch.setattr(tests, "choose_levels", counted)
    monkeypatch.setenv(SEED, "4711")  # of no other run, which might have left its answers
    tests.test_budget_and_calls_are_kept()
    tests.test_as_good_as_the_best_common_level()
    tests.test_half_of_what_can_be_saved()
    tests.test_most_of_what_can_be_saved(lambda name, value: None)
    tests.test_few_measurements_and_noise()
    assert len(asked) == len(set(asked)) <= MOST_ANSWERS
