"""Answers to exercises as Python's trees: the engine's, other right ones, and wrong ones."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutants import mutants

from flashlite.course.generate import find_function, reference_path
from flashlite.course.grade import Grade
from flashlite.course.manifest import Course, Exercise, parse_toml

ROOT = Path(__file__).parent.parent
ALTERNATIVES, EQUIVALENT = ROOT / "tests/alternatives.py", ROOT / "tests/mutants/equivalent.toml"
Key = tuple[str, str]  # an exercise, and the change that a mutant made


@dataclass
class Case:
    """An answer to an exercise, and how it was graded with each seed.

    change: what is wrong with it, or an alternative's name
    says: a pattern that its message must have; without one, a wrong answer made by hand must not be told any mistake
    """

    exercise: Exercise
    change: str
    function: ast.FunctionDef
    says: str = ""
    grades: list[Grade] = field(default_factory=list)

    @property
    def key(self) -> Key:
        """What equivalent.toml calls it."""
        return self.exercise.id, self.change

    @property
    def lost(self) -> int:
        """With how many seeds it lost points."""
        return sum(grade.status != "PASS" for grade in self.grades)


def right_answers(course: Course) -> list[Case]:
    """The engine's own function for each exercise, and the alternatives. change: an alternative's name."""
    found = []
    for exercise in course.exercises:
        tree = ast.parse(reference_path(course.root, exercise).read_text(encoding="utf-8"))
        found.append(Case(exercise, "", find_function(tree, exercise.qualname)))
    for node in ast.parse(ALTERNATIVES.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            exercise = course.find(ast.literal_eval(node.decorator_list[0].args[0]))  # type: ignore[attr-defined]
            found.append(Case(exercise, node.name, copy.copy(node)))
            found[-1].function.decorator_list = []
    return found


def machine_made(right: Case) -> list[Case]:
    """Every mutant of a right answer."""
    of = f"{right.change}: " if right.change else ""
    return [Case(right.exercise, of + mutant.change, mutant.function) for mutant in mutants(right.function)]


def hand_made(course: Course) -> list[Case]:
    """The wrong answers of tests/mutants/: in a solution, `old` became `new`."""
    entries = [entry for file in sorted(EQUIVALENT.parent.glob("ch*.toml")) for entry in read(file)["mutant"]]
    found = []
    for entry in entries:
        exercise = course.find(entry["exercise"])
        function = find_function(ast.parse(mutated(course, entry)), exercise.qualname)
        found.append(Case(exercise, entry["name"], function, entry.get("says", "")))
    return found


def mutated(course: Course, entry: dict[str, str]) -> str:
    """The text of the solution file with the mistake in it."""
    exercise = course.find(entry["exercise"])
    text = (course.root / "solutions" / exercise.file).read_text(encoding="utf-8")
    function = find_function(ast.parse(text), exercise.qualname)
    body = "".join(text.splitlines(keepends=True)[function.lineno - 1 : function.end_lineno])
    assert body.count(entry["old"]) == 1, f"{exercise.id} {entry['name']}: {entry['old']!r} is not once in the solution"
    return text.replace(body, body.replace(entry["old"], entry["new"]))


def equivalents() -> dict[Key, str]:
    """Changes that are not mistakes, with the reason."""
    entries = read(EQUIVALENT).get("equivalent", [])
    return {(entry["exercise"], change): entry["reason"] for entry in entries for change in entry["changes"]}


def read(file: Path) -> dict[str, Any]:
    """What a TOML file says."""
    return parse_toml(file.read_text(encoding="utf-8"))
