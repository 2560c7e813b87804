"""Exercises that nobody has solved yet, told by reading their files, and what to run without them."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from flashlite.course.generate import find_function
from flashlite.course.impl.choose import CONTEST, Plug, sources
from flashlite.course.manifest import Course, Exercise
from flashlite.errors import FlashliteError


def order_of(exercise: Exercise, file: Path) -> str | None:
    """What the stub of an exercise still asks for, and where it stands; None if it is a stub no longer.

    A file that isn't Python, or lacks the function, has no stub: running it says better what is wrong with it.
    """
    try:
        function = find_function(ast.parse(file.read_bytes()), exercise.qualname)
    except (OSError, SyntaxError, ValueError, FlashliteError):
        return None
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and (order := _text(node)).startswith(f"exercise {exercise.id}:"):
            return f"{order} ({file.parent.name}/{file.name}:{node.lineno})"
    return None


def _text(node: ast.AST) -> str:
    """The first text inside a statement."""
    values = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
    return next((value for value in values if isinstance(value, str)), "")


def orders(exercises: Sequence[Exercise], plugs: dict[str, Plug]) -> dict[str, str]:
    """What the stubs among these exercises ask for, by the exercise's id. All of them run from `plugs`."""
    found = {exercise.id: order_of(exercise, Path(plugs[exercise.module].file)) for exercise in exercises}
    return {identifier: order for identifier, order in found.items() if order is not None}


def solved_alone(course: Course, impl: str, solved: Sequence[str], unsolved: Sequence[str]) -> str:
    """What `--impl` must say instead so that no stub runs: the shorter way to say it; empty if nothing would remain.

    solved, unsolved: the exercises that run, by id
    """
    chosen = sources(course, impl)
    kept = [*solved, CONTEST] if chosen[CONTEST] != "ref" else list(solved)
    if not kept:
        return ""
    without = [impl, *(f"{name}=ref" for name in unsolved)]
    alone = ["ref", *(f"{name}={chosen[name]}" for name in kept)]
    return min(",".join(without), ",".join(alone), key=len)
