"""The course's commands: grade, hint, progress, report. They work inside a clone of the course."""

from __future__ import annotations

import importlib.util
import json
import random
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flashlite.cli import teach
from flashlite.cli.grades import STYLES, Printer, screen, shown
from flashlite.cli.teach import Classroom, chosen_exercises, grade_class
from flashlite.course.classroom import gradescope
from flashlite.course.classroom.hints import hints_before, next_hint
from flashlite.course.classroom.state import STATE, Last, last_grades, remember, write_text
from flashlite.course.grade import JOBS, TIME_LIMIT, as_json, grade, packed_archives, submission_folder, totals
from flashlite.course.manifest import Course, Exercise, find_course
from flashlite.errors import FlashliteError


def register(app: typer.Typer) -> None:
    """Add the course's commands to the command line."""
    app.command("grade")(grade_command)
    app.command("hint")(hint)
    app.command("progress")(progress)
    app.command("report")(report)
    teach.register(app)


def grade_command(
    which: Annotated[
        list[str] | None, typer.Argument(help="chapters (3) and exercises (3.2 3.3); all if not given")
    ] = None,
    impl: Annotated[str, typer.Option(help="mine, or solutions")] = "mine",
    seed: Annotated[int | None, typer.Option(help="of the inputs; a new one each time if not given")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the result to this file")] = None,
    gradescope_file: Annotated[
        Path | None, typer.Option("--gradescope", help="write it to this file as Gradescope reads it, results.json")
    ] = None,
    submission: Annotated[Path | None, typer.Option(help="grade the exercise files in this folder")] = None,
    classroom: Annotated[Path | None, typer.Option("--class", help="grade every folder in this one")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="with --class: a line a student")] = None,
    time_limit: Annotated[float, typer.Option(help="seconds for one exercise")] = TIME_LIMIT,
    jobs: Annotated[
        int, typer.Option(help="grading processes at a time", min=1, show_default="one a core, at most 8")
    ] = JOBS,
) -> None:
    """Grade exercises. The exit code is 0 only if every one of them passes; an elective that nobody asked for and that
    isn't begun is left out of this."""
    if importlib.util.find_spec("pytest") is None:
        raise FlashliteError("grading needs pytest: pip install pytest")
    course, began = find_course(), time.monotonic()
    exercises, seed = chosen_exercises(course, which), random.randrange(100_000) if seed is None else seed
    if classroom is not None:
        _check_class(json_file, gradescope_file, submission)
        asked = Classroom(classroom, csv_file or Path("grades.csv"), seed, time_limit, jobs)
        return grade_class(course, asked, exercises)
    folder, impl = _folder(course, impl, submission, gradescope_file)
    grades = grade(course, folder, exercises, seed, time_limit, Printer(course, folder, impl, seed), jobs)
    target = gradescope_file or json_file or course.root / STATE / "grade.json"
    if gradescope_file is not None:
        _write_json(gradescope_file, gradescope.results(grades, seed, time.monotonic() - began))
    if gradescope_file is None or json_file is not None:
        _write_json(json_file or target, as_json(course, impl, seed, grades))
    if submission is None and impl == "mine":
        remember(course, grades)
    lines = [f"{name} [bold]{points}/{most}[/bold]" for name, (points, most) in totals(course, grades).items()]
    screen.print("\n" + "\n".join([f"{lines[0]} → {shown(target)}", *lines[1:]]))
    left_out = [g for g in grades if not which and course.is_elective(g.id) and g.status == "TODO"]
    raise typer.Exit(0 if all(g.status == "PASS" for g in grades if g not in left_out) else 1)


def _check_class(json_file: Path | None, gradescope_file: Path | None, submission: Path | None) -> None:
    """Raise FlashliteError for an option that says nothing of a class."""
    one = {"--json": json_file, "--gradescope": gradescope_file, "--submission": submission}
    if beside := next((name for name, path in one.items() if path is not None), None):
        raise FlashliteError(f"--class goes without {beside}, which is for one student: write one of them")


def _folder(course: Course, impl: str, submission: Path | None, gradescope_file: Path | None) -> tuple[Path, str]:
    """Where the files to grade are, and whose they are called. Gradescope is told as well if there are none."""
    if submission is not None:
        if (reason := _refused(course, submission)) is not None:
            if gradescope_file is not None:
                _write_json(gradescope_file, gradescope.refused(reason))
            raise FlashliteError(reason)
        return submission_folder(course, submission) or submission, submission.resolve().name
    if impl not in {"mine", "solutions"}:
        raise FlashliteError(f"--impl {impl!r}: grade takes mine or solutions")
    return course.root / ("exercises" if impl == "mine" else "solutions"), impl


def _refused(course: Course, submission: Path) -> str | None:
    """Why a submission can't be graded, if it can't."""
    if not submission.is_dir():
        return f"{submission} is no folder: name the one that holds a student's exercise files"
    if submission_folder(course, submission) is not None:
        return None
    archives = ", ".join(path.name for path in packed_archives(submission))
    reason = f"{submission} holds no exercise files, such as {next(iter(course.files))}"
    return f"{reason}: unpack {archives}" if archives else reason


def _write_json(path: Path, result: object) -> None:
    write_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def hint(exercise: Annotated[str, typer.Argument(help="its number, such as 3.2")]) -> None:
    """Show the next hint for an exercise; after the last one they begin again. A grade says which were shown before the
    exercise passed; they cost no points."""
    course = find_course()
    asked, last = course.find(exercise), last_grades(course).get(exercise)
    number = next_hint(course.root / "exercises", asked, passed=last is not None and last.status == "PASS")
    screen.print(f"{asked.id} {asked.title}: hint {number} of {len(asked.hints)}", style="bold")
    screen.print(escape(asked.hints[number - 1]))


def progress() -> None:
    """Show how far the course is done, by the last grading of each exercise."""
    course = find_course()
    known = last_grades(course)
    table = Table("chapter", "", "points", "exercises", title="flashlite: the course", width=min(100, screen.width))
    for chapter, title in course.chapters.items():
        name = f"{chapter} {title}{' (elective)' if chapter in course.electives else ''}"
        table.add_row(*_chapter_row(name, [e for e in course.exercises if e.chapter == chapter], known))
    core = [e for e in course.exercises if not course.is_elective(e.id)]
    earned, most = _points(core, known)
    screen.print(table)
    screen.print(f"{bar(earned, most, 40)} {earned}/{most} points")
    hints = {e.id: len(hints_before(course.root / "exercises", e)) for e in course.exercises}
    if any(hints.values()):
        screen.print("hints: " + ", ".join(f"{count} of {identifier}" for identifier, count in hints.items() if count))
    following = next((e for e in course.exercises if e.id not in known or known[e.id].status != "PASS"), None)
    if following is not None:
        screen.print(f"next: {following.id} {following.title}, {following.minutes} minutes, exercises/{following.file}")


def _points(exercises: list[Exercise], known: dict[str, Last]) -> tuple[int, int]:
    """The points that exercises earned, and the most that there are."""
    return sum(known[e.id].points for e in exercises if e.id in known), sum(e.points for e in exercises)


def _chapter_row(name: str, exercises: list[Exercise], known: dict[str, Last]) -> list[str]:
    earned, most = _points(exercises, known)
    states = [(e.id, known[e.id].status if e.id in known else "TODO") for e in exercises]
    marks = " ".join(f"[{STYLES[state]}]{identifier}[/]" for identifier, state in states)
    return [name, bar(earned, most, 12), f"{earned}/{most}", marks]


def bar(earned: int, most: int, width: int) -> str:
    """Points as a bar of `width` characters."""
    filled = round(width * earned / most) if most else 0
    return "█" * filled + "░" * (width - filled)


def report(
    out: Annotated[Path | None, typer.Option(help="the folder to write to; report/ of your clone if not given")] = None,
    bench: Annotated[
        Path | None, typer.Option(help="a result of bench --json; the newest in .flashlite/ if not given")
    ] = None,
) -> None:
    """Fill the report with your own figures, plots and grades, in Markdown and HTML. Answer its questions in report.md,
    and run this again: your answers are kept."""
    course = find_course()
    from flashlite.course.report.write import write_report

    folder = out or course.root / "report"
    missing = write_report(course, folder, bench)
    screen.print(escape("\n".join([f"{shown(folder / 'report.md')}, {shown(folder / 'report.html')}", *missing])))
