"""Exercise stubs and solutions, made from the engine's own code, so that the three never differ."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from flashlite.course.manifest import Course, Exercise
from flashlite.errors import FlashliteError

WIDTH = 120


def find_function(tree: ast.AST, qualname: str) -> ast.FunctionDef:
    """A function or method in a parsed module. Raises FlashliteError if it isn't there."""
    scope: ast.AST = tree
    for name in qualname.split("."):
        body = getattr(scope, "body", [])
        found = [n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name]
        if not found:
            raise FlashliteError(f"there is no function {qualname}")
        scope = found[-1]
    if not isinstance(scope, ast.FunctionDef):
        raise FlashliteError(f"{qualname} is not a function")
    return scope


def reference_path(root: Path, exercise: Exercise) -> Path:
    """The engine's file that an exercise's reference is in."""
    return root / f"{exercise.module.replace('.', '/')}.py"


def stub(root: Path, exercises: list[Exercise], hidden: Sequence[str] = ()) -> str:
    """An exercise file: the engine's module in which the named functions have lost their bodies. hidden: others too."""
    slot, module = exercises[0].slot, exercises[0].module
    head = (
        f"# Exercises {', '.join(e.id for e in exercises)}. With `--impl ref,{slot}=mine` this file takes the place of "
        f"{module}.\n# Everything without a TODO is provided, and runs as it stands"
    )
    head += "; where a body is left out, the engine's own runs.\n" if hidden else ".\n"
    return head + _rewritten(root, exercises, _contract, hidden)


def solution(root: Path, exercises: list[Exercise]) -> str:
    """A solution file: the engine's module with the reasons and the usual mistakes beside each solved function."""
    head = (
        f"# Solutions of exercises {', '.join(e.id for e in exercises)}: {exercises[0].module} as the engine runs it.\n"
    )
    return head + _rewritten(root, exercises, _explanation)


def _rewritten(
    root: Path, exercises: list[Exercise], write_body: Callable[[Exercise, list[str], str], list[str]],
    hidden: Sequence[str] = (),
) -> str:  # fmt: skip
    text = reference_path(root, exercises[0]).read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    writers: list[tuple[str, Callable[[list[str], str], list[str]]]] = [(name, _left_out) for name in hidden]
    writers += [(exercise.qualname, partial(write_body, exercise)) for exercise in exercises]
    spots = [(find_function(tree, name), write) for name, write in writers]
    for function, write in sorted(spots, key=lambda spot: -spot[0].lineno):
        begin, end = _body(function)
        lines[begin:end] = write(lines[begin:end], " " * function.body[0].col_offset)
    return "\n".join(lines) + "\n"


def _body(function: ast.FunctionDef) -> tuple[int, int]:
    """Where the lines of a function's body begin, after its docstring, and end."""
    first, described = function.body[0], ast.get_docstring(function) is not None
    return (first.end_lineno or 0) if described else first.lineno - 1, function.end_lineno or 0


def _contract(exercise: Exercise, body: list[str], indent: str) -> list[str]:
    facts = f"{exercise.worth}, {exercise.minutes} minutes, paper {exercise.paper}"
    lines = _comment(f"TODO {exercise.id}  {exercise.title} ({facts})\n{exercise.task.strip()}", indent)
    lines += _comment("Example: " + exercise.example, indent)
    if exercise.provided:
        lines += _comment("Provided: " + exercise.provided, indent)
    lines += _comment(f"In the engine: {how_to_run(exercise)}", indent)
    order = f"exercise {exercise.id}: delete this line and write {exercise.qualname.split('.')[-1]}, see the TODO above"
    return [*lines, f'{indent}raise NotImplementedError("{order}")']


def _left_out(body: list[str], indent: str) -> list[str]:
    return [
        f"{indent}# Left out, because it would show how to solve an exercise. The engine's own code runs here.",
        f'{indent}raise NotImplementedError("left out here: flashlite runs its own code in place of this")',
    ]


def _explanation(exercise: Exercise, body: list[str], indent: str) -> list[str]:
    why = _comment(f"{exercise.id}  {exercise.why}", indent)
    return [*why, *_comment("Usual mistakes: " + exercise.mistakes, indent), *body]


def _comment(text: str, indent: str) -> list[str]:
    """Text as comment lines; a line that begins with a space is kept as it is, for examples."""
    lines: list[str] = []
    for part in text.strip("\n").split("\n"):
        wrapped = [part] if part.startswith(" ") else textwrap.wrap(part, WIDTH - len(indent) - 2)
        lines += [f"{indent}# {line}".rstrip() for line in wrapped or [""]]
    return lines


def how_to_run(exercise: Exercise) -> str:
    """What runs an exercise in the engine: a command, or its chapter's last cell."""
    if not exercise.run:
        return f"the last code cell of chapter {exercise.chapter}"
    command = exercise.run.format(model="opt-mini", store="my-store", text="flashlite/*/*.py")
    return f"flashlite {command} --impl ref,{exercise.slot}=mine"


def overview(course: Course) -> str:
    """exercises/README.md: which exercise belongs to which chapter, where it is, and what runs it."""
    lines = [
        "# The exercises", "",
        "Each file here is a module of the engine in which some functions have lost their bodies. The command",
        "`flashlite grade 3.2` checks one exercise, `flashlite grade 3` a chapter, and `flashlite hint 3.2` helps.",
        "The commands below run your code in the engine and say at the end how often it was called; so does each",
        "chapter's last code cell. `flashlite pack opt-mini my-store` makes the store that some of them name; those in",
        "`.flashlite/` are written by the first cells of the chapter whose exercises name them.",
        "A warm-up is graded like any other exercise and earns no points.",
        "", "tools/sync.py makes this page from course.toml.",
    ]  # fmt: skip
    for number, title in course.chapters.items():
        elective = ", an elective" if number in course.electives else ""
        lines += ["", f"## {_chapter(course, number, title)}{elective}", ""]
        lines += ["| exercise | function | file | points | minutes | in the engine |", "|---|---|---|---|---|---|"]
        lines += [_line(exercise) for exercise in course.exercises if exercise.chapter == number]
    return "\n".join(lines) + "\n"


def _chapter(course: Course, number: int, title: str) -> str:
    """A chapter's number and title, with a link to its notebook if the clone has it."""
    notebooks = sorted((course.root / "chapters").glob(f"{number:02}_*.ipynb"))
    return f"[{number}. {title}](../chapters/{notebooks[0].name})" if notebooks else f"{number}. {title}"


def _line(exercise: Exercise) -> str:
    """An exercise as a line of the overview."""
    run = f"`{how_to_run(exercise)}`" if exercise.run else how_to_run(exercise)
    return (
        f"| {exercise.id} {exercise.title} | `{exercise.qualname}` | [{exercise.file}]({exercise.file}) | "
        f"{exercise.points or exercise.worth} | {exercise.minutes} | {run} |"
    )


def generated_files(course: Course) -> dict[str, str]:
    """Every file made from the engine or from course.toml: exercises/... and solutions/... with its text."""
    files = {}
    for name, exercises in course.files.items():
        files[f"exercises/{name}"] = stub(course.root, exercises, course.hidden(name))
        files[f"solutions/{name}"] = solution(course.root, exercises)
    return files | {"exercises/README.md": overview(course)}
