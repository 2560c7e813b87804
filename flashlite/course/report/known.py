"""What is known of a student's work, in Markdown: each function gives the value of one name of the report's template.

Where something is missing, the value is a line that names the command which makes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashlite.bench.result import Result
from flashlite.bench.tables import Table, ladder_markdown, number
from flashlite.course.classroom.hints import hints_before
from flashlite.course.classroom.state import STATE, last_grades, read_state
from flashlite.course.manifest import Course, Exercise
from flashlite.errors import FlashliteError

MISSING = "*Missing:*"  # how a line begins that says what is missing
BENCH = f"flashlite bench --impl mine --json {STATE}/bench.json"
NO_BENCH = f"{MISSING} no benchmark in `{STATE}/`. Run `{BENCH}`."


def last_benchmark(course: Course, path: Path | None) -> Result | None:
    """The result in a file, or the newest of `bench --json` in the course's folder `.flashlite`, one of
    the student's own code if there is any; None if there is none.

    Raises FlashliteError if the file that was named doesn't hold one.
    """
    if path is not None:
        try:
            return _result(path)
        except (OSError, ValueError, RecursionError, FlashliteError) as error:
            raise FlashliteError(f"{path} is not a result of bench --json: {error}") from None
    found = [
        (file.stat().st_mtime, result) for file in (course.root / STATE).glob("*.json") if (result := _tried(file))
    ]
    return max(found, key=lambda pair: (pair[1].impl != "ref", pair[0]), default=(0.0, None))[1]


def _tried(path: Path) -> Result | None:
    """The result in a file, None if it holds something else."""
    try:
        return _result(path)
    except (OSError, ValueError, RecursionError, FlashliteError):
        return None


def _result(path: Path) -> Result:
    return Result.from_json(json.loads(path.read_text(encoding="utf-8")))


def machine(result: Result | None) -> str:
    """The machine and the drive that the ladder was measured on."""
    if result is None:
        return NO_BENCH
    host, drive = result.host, result.drive
    return (
        f"{host.processor}, {host.cores} cores, {host.memory_bytes / 2**30:.0f} GiB; {host.system}, Python "
        f"{host.python}, torch {host.torch}, transformers {host.transformers}. The model lies on the drive "
        f"{drive.device}, read directly on a grid of {drive.alignment} bytes."
    )


def ladder(result: Result | None) -> str:
    """The ladder, and whose code it ran."""
    if result is None:
        return NO_BENCH
    if result.impl == "ref":
        return f"{ladder_markdown(result)}\n\n{MISSING} this is the engine's own code. `{BENCH}` measures yours."
    files = ", ".join(f"`{line.split(' → ')[-1].split(' ')[0]}`" for line in result.plugged)
    return f"{ladder_markdown(result)}\n\n`--impl {result.impl}`: {files}."


def calls(course: Course, result: Result | None) -> str:
    """How often that benchmark called each function of the student's."""
    if result is None or result.impl == "ref":
        return f"{MISSING} no calls of your functions. Run `{BENCH}`."
    names = {exercise.id: exercise.qualname for exercise in course.exercises}
    called = [f"{e} `{names.get(e, '?')}` {count:,}" for e, count in result.calls.items() if count]
    return f"Calls of your functions in this benchmark: {', '.join(called) if called else 'none'}."


def grades(course: Course) -> str:
    """Points and hints by chapter and exercise, as they were graded last."""
    last = last_grades(course)
    if not last:
        return f"{MISSING} nothing was graded yet. Run `flashlite grade`."
    rows = []
    for chapter, title in course.chapters.items():
        of_chapter = [e for e in course.exercises if e.chapter == chapter]
        graded = [e for e in of_chapter if e.id in last]
        if graded:
            earned, most = sum(last[e.id].points for e in graded), sum(e.points for e in of_chapter)
            rows.append([f"{chapter} {title}", f"{earned}/{most}", _exercises(course, graded)])
    todo = [e.id for e in course.exercises if e.id not in last and not course.is_elective(e.id)]
    note = f"\n\n{MISSING} {', '.join(todo)} not graded yet. Run `flashlite grade`." if todo else ""
    columns = Table(["chapter", "points", "exercises"], rows).markdown().replace("---: | ---:", "---: | ---", 1)
    return columns + note


def _exercises(course: Course, exercises: Sequence[Exercise]) -> str:
    last, told = last_grades(course), []
    for e in exercises:
        hints = len(hints_before(course.root / "exercises", e))
        spoken = f", {hints} {'hint' if hints == 1 else 'hints'}" if hints else ""
        earned = f"{last[e.id].points}/{e.points}" if e.points else last[e.id].status
        told.append(f"{e.id}: {earned}{spoken}")
    return " · ".join(told)


def contests(course: Course) -> str:
    """The scores of the contests, if there are any."""
    scores = {name: entry for name, entry in read_state(course.root / STATE / "contest.json").items() if _score(entry)}
    if not scores:
        return f"{MISSING} no contest was entered. Run `flashlite contest`."
    return "\n".join(f"- {name}: {number(entry['score'])} points" for name, entry in scores.items())


def _score(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("score")) in (int, float)
