"""Wrong answers to every exercise, made by hand or by machine: each loses points, and most are told what they did."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from answers import EQUIVALENT, mutated, read

from flashlite.course.grade import grade_one
from flashlite.course.manifest import Course, read_course

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted(read_course(ROOT).chapters)
BY_HAND = {chapter: read(EQUIVALENT.parent / f"ch{chapter:02}.toml")["mutant"] for chapter in CHAPTERS}
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="tools/mutate.py grades in forked processes")


def mutate(*arguments: str) -> None:
    """Run tools/mutate.py, which grades many answers in little time, and expect that it finds no fault."""
    command = [sys.executable, ROOT / "tools/mutate.py", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


@forks
def test_wrong_answers_lose_points_and_are_told_why_and_right_ones_lose_none() -> None:
    mutate("--hand", "--seeds", "1", "--seed", "1")


@forks
def test_small_mistakes_made_by_machine_lose_points() -> None:
    mutate("--sample", "40", "--seeds", "1", "--seed", "3")


@pytest.mark.parametrize("chapter", CHAPTERS[1::2])
def test_a_wrong_answer_in_a_file_is_told_why_by_a_whole_grading(chapter: int, course: Course, tmp_path: Path) -> None:
    mutant: dict[str, Any] = next(entry for entry in BY_HAND[chapter] if "says" in entry)
    exercise, text = course.find(mutant["exercise"]), mutated(course, mutant)
    (tmp_path / exercise.file).write_text(text, encoding="utf-8")
    grade = grade_one(course, tmp_path, exercise, seed=1)
    assert grade.status in {"FAIL", "ERROR"}, grade
    assert grade.points < grade.max or grade.max == 0
    assert re.search(mutant["says"], grade.message), f"the message doesn't name the mistake: {grade.message}"


def test_every_exercise_has_two_mutants_and_most_are_named(course: Course) -> None:
    mutants = [mutant for chapter in BY_HAND.values() for mutant in chapter]
    count = Counter(mutant["exercise"] for mutant in mutants)
    assert {e.id for e in course.exercises} == set(count)
    assert min(count.values()) >= 2
    assert sum("says" in mutant for mutant in mutants) >= len(mutants) / 2
