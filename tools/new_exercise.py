"""Begin a new exercise: python tools/new_exercise.py 3.5 flashlite.engine.window:Window.amend

Writes an entry for course.toml, a test that fails and two mutants, with TODO wherever the author has something to say,
and then exercises/ and solutions/ as tools/sync.py does.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import replace
from pathlib import Path

from sync import edited_exercises, sync

from flashlite.course.generate import find_function, reference_path
from flashlite.course.grade import exercise_tests
from flashlite.course.manifest import MANIFEST, Course, Exercise, read_course
from flashlite.errors import FlashliteError

ROOT = Path(__file__).parent.parent
ENTRY = '''[[exercise]]
id = "{id}"
title = "TODO: what it builds, in a few words"
points = 1
minutes = 10
difficulty = 1
paper = "TODO: the section"
reference = "{reference}"
{topic}run = "TODO: the command that calls it, without flashlite and --impl; empty if the chapter's last cell does"
task = """
TODO: what to return, with shapes and units, and what holds at the edges.
"""
example = """TODO: an input in small, and what it gives"""
provided = """TODO: what the function may use"""
why = """TODO: why the solution is as it is"""
mistakes = """TODO: the usual mistakes"""
hints = [
  "TODO: where to look",
  "TODO: which idea",
  "TODO: the property or the pitfall that decides it, or a smaller example, but never the answer",
]

'''
TESTS = '''"""Exercises of {file}: TODO, what they are about."""

from __future__ import annotations

import pytest
'''
TEST = """

@pytest.mark.points("{id}", 1)
def test_{name}() -> None:
    from flashlite.course.checks import expect, rng  # TODO: import what you need at the top of the file

    found, right = None, rng().random()  # TODO: call {qualname} on inputs from rng(), and compute what is right
    expect(found, right, "TODO: what was asked for", {{"TODO: the mistake that gives this value.": 0.0}})
"""
MUTANT = """
[[mutant]]
exercise = "{id}"
name = "TODO: a plausible mistake"
old = "TODO: a piece of the solution"
new = "TODO: what a student might write instead"
says = "TODO: words of the message that names the mistake"
"""


def begin(course: Course, identifier: str, reference: str) -> list[str]:
    """Write all that a new exercise needs. Returns the names of the files that have a TODO now.

    identifier: chapter.number
    reference: module:function or module:Class.method

    Raises FlashliteError, and writes nothing, if either can't be meant, or if an exercise was edited.
    """
    if not re.fullmatch(r"\d+\.\d+", identifier) or int(identifier.split(".")[0]) not in course.chapters:
        raise FlashliteError(f"{identifier!r} is not of a chapter: write 3.5 for the fifth exercise of chapter 3")
    if any(identifier == e.id or reference == e.reference for e in course.exercises):
        raise FlashliteError(f"{MANIFEST} has an exercise {identifier}, or one of {reference}, already")
    if edited := edited_exercises(course):
        raise FlashliteError(f"exercises/{edited[0]} was edited: move it away first")
    text = (course.root / MANIFEST).read_text(encoding="utf-8")
    begins = re.finditer(r'^\[\[exercise\]\]\nid = "(.+)"$', text, re.MULTILINE)
    at = next((entry.start() for entry in begins if after(entry[1], identifier)), len(text))
    exercise = added(course, identifier, reference)
    topic = f'topic = "{exercise.topic}"\n' if exercise.topic else ""
    entry = ENTRY.format(id=identifier, reference=reference, topic=topic)
    tests, mutants = exercise_tests(course, exercise), course.root / f"tests/mutants/ch{exercise.chapter:02}.toml"
    (course.root / MANIFEST).write_text(text[:at].rstrip("\n") + "\n\n" + entry + text[at:], encoding="utf-8")
    facts = {"id": identifier, "name": exercise.qualname.split(".")[-1].strip("_"), "qualname": exercise.qualname}
    append(tests, "" if tests.exists() else TESTS.format(file=exercise.file), TEST.format(**facts))
    append(mutants, 2 * MUTANT.format(**facts))
    sync(read_course(course.root), force=False)
    return [str(path.relative_to(course.root)) for path in (course.root / MANIFEST, tests, mutants)]


def after(one: str, other: str) -> bool:
    """Whether an exercise comes after another one."""
    return [int(part) for part in one.split(".")] > [int(part) for part in other.split(".")]


def added(course: Course, identifier: str, reference: str) -> Exercise:
    """The new exercise. Raises FlashliteError if its reference is not a function of the engine."""
    exercise = Exercise(identifier, "", 1, 10, 1, "", reference, "", "", "", "")
    path = reference_path(course.root, exercise)
    if not path.is_file():
        raise FlashliteError(f"{reference} is not understood: write flashlite.engine.window:Window.step")
    find_function(ast.parse(path.read_text(encoding="utf-8")), exercise.qualname)
    siblings = [e for e in course.exercises if e.module == exercise.module]
    if any(e.slot != exercise.slot for e in siblings):
        raise FlashliteError(
            f"{exercise.module} is a file of chapter {siblings[0].chapter} already: choose that chapter"
        )
    return replace(exercise, topic=siblings[0].topic) if siblings else exercise


def append(path: Path, *texts: str) -> None:
    """Add text to the end of a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(texts))


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        files = begin(read_course(ROOT), *sys.argv[1:])
    except FlashliteError as error:
        sys.exit(f"new_exercise: {error}")
    print(f"Write what is marked TODO in {', '.join(files)}, then run python tools/sync.py --force and")
    print(f"pytest tests/test_course.py -k '{sys.argv[1]} or points', and python tools/mutate.py --hand {sys.argv[1]}.")
    print("The points of all chapters but electives must sum to 100.")


if __name__ == "__main__":
    main()
