"""How grades are shown: a line an exercise, and a failure's own lines below it."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flashlite.course.grade import Grade
from flashlite.course.manifest import Course, Exercise

STYLES = {"PASS": "bold green", "FAIL": "bold red", "TODO": "yellow", "ERROR": "bold magenta"}
INDENT = "    "
NARROWEST, WIDEST = 40, 100  # characters of a failure's lines
screen = Console(highlight=False, soft_wrap=True)


class Printer:
    """Prints grades as they come in, under a line for each file."""

    def __init__(self, course: Course, folder: Path, impl: str, seed: int) -> None:
        self._course, self._folder, self._impl, self._seed, self._file = course, folder, impl, seed, ""

    def __call__(self, exercise: Exercise, grade: Grade) -> None:
        """Print the grade of an exercise."""
        path = self._folder / exercise.file
        if self._file != exercise.file:
            self._file = exercise.file
            state = "edited" if path.is_file() and self._course.is_edited(path) else "untouched"
            named = f"{shown(path)} ({state})" if self._impl != "solutions" else shown(path)
            screen.print(f"impl={escape(self._impl)}  {escape(named)}  seed={self._seed}", style="dim")
        status = f"[{STYLES[grade.status]}]{grade.status:5}[/]"
        row = f"{grade.id} {grade.title:52} {status} {grade.earned}  {spoken_hints(len(grade.hints))}"
        screen.print(row.rstrip())
        if grade.status in {"FAIL", "ERROR"}:
            screen.print(escape("\n".join(failure_lines(grade.message, screen.width))))
            screen.print(f"{INDENT}→ flashlite hint {grade.id}", style="dim")
        if grade.status == "PASS" and self._impl == "mine":
            screen.print(f"{INDENT}compare: solutions/{exercise.file}", style="dim")


def failure_lines(message: str, width: int) -> list[str]:
    """The lines of a message, each wrapped between words and indented, for a terminal of `width` characters."""
    width = max(NARROWEST, min(width, WIDEST))
    wrapped = (
        textwrap.wrap(line, width, initial_indent=INDENT, subsequent_indent=INDENT + "  ", break_on_hyphens=False)
        for line in message.splitlines()
    )
    return [line for lines in wrapped for line in lines]


def spoken_hints(count: int) -> str:
    """How many hints were shown, empty if none."""
    return f"{count} {'hint' if count == 1 else 'hints'}" if count else ""


def shown(path: Path) -> str:
    """A path as one would type it here."""
    inside = path.is_absolute() and path.is_relative_to(Path.cwd())
    return os.path.relpath(path) if inside else str(path)
