"""Plausible wrong answers to every exercise: each loses points, and most are told what they did."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from flashlite.course.generate import find_function
from flashlite.course.grade import grade_one
from flashlite.course.manifest import Course, parse_toml

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutant:
    """A solution with one mistake: `old` became `new`. says: what the message must name, if it should."""

    exercise: str
    name: str
    old: str
    new: str
    says: str = ""


def load_mutants() -> list[Mutant]:
    files = sorted((ROOT / "tests/mutants").glob("ch*.toml"))
    return [Mutant(**entry) for file in files for entry in parse_toml(file.read_text())["mutant"]]


MUTANTS = load_mutants()


def mutated(course: Course, mutant: Mutant) -> tuple[str, str]:
    """The name and the text of the solution file with the mistake in it."""
    import ast

    exercise = course.find(mutant.exercise)
    text = (ROOT / "solutions" / exercise.file).read_text()
    function = find_function(ast.parse(text), exercise.qualname)
    lines = text.splitlines(keepends=True)
    body = "".join(lines[function.lineno - 1 : function.end_lineno])
    assert body.count(mutant.old) == 1, f"{mutant.exercise} {mutant.name}: {mutant.old!r} is not once in the solution"
    return exercise.file, text.replace(body, body.replace(mutant.old, mutant.new))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.exercise} {m.name}")
def test_a_wrong_answer_loses_points(mutant: Mutant, course: Course, tmp_path: Path) -> None:
    name, text = mutated(course, mutant)
    (tmp_path / name).write_text(text)
    grade = grade_one(course, tmp_path, course.find(mutant.exercise), seed=1)
    assert grade.status in {"FAIL", "ERROR"}, grade
    assert grade.points < grade.max
    assert re.search(mutant.says, grade.message), f"the message doesn't name the mistake: {grade.message}"


def test_every_exercise_has_two_mutants_and_most_are_named(course: Course) -> None:
    count = Counter(mutant.exercise for mutant in MUTANTS)
    assert {e.id for e in course.exercises} == set(count)
    assert min(count.values()) >= 2
    assert sum(bool(mutant.says) for mutant in MUTANTS) >= len(MUTANTS) / 2
