"""The course's commands: grade, hint, progress. They work inside a clone of the course."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flashlite.course.grade import TIME_LIMIT, Grade, as_json, grade, submission_folder, totals, visible_folders
from flashlite.course.manifest import MANIFEST, Course, Exercise, find_course
from flashlite.errors import FlashliteError
from flashlite.storage.strict_json import read_object

STATE = ".flashlite"
STYLES = {"PASS": "bold green", "FAIL": "bold red", "TODO": "yellow", "ERROR": "bold magenta"}
screen = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Last:
    """How an exercise did when it was last graded."""

    points: int
    status: str

    @classmethod
    def read(cls, noted: object, most: int) -> Last | None:
        """What was noted of an exercise that is worth `most` points now; None if it makes no sense."""
        points, status = (noted.get("points"), noted.get("status")) if isinstance(noted, dict) else (None, None)
        if type(points) is not int or not isinstance(status, str) or status not in STYLES:
            return None
        whole = {"PASS": most, "TODO": 0}  # these two say it all, whatever the exercise was worth when it was graded
        return cls(whole.get(status, max(0, min(points, most - 1))), status)


def register(app: typer.Typer) -> None:
    """Add the course's commands to the command line."""
    app.command("grade")(grade_command)
    app.command("hint")(hint)
    app.command("progress")(progress)


def grade_command(
    which: Annotated[str | None, typer.Argument(help="a chapter (3) or an exercise (3.2); all if not given")] = None,
    impl: Annotated[str, typer.Option(help="mine, or solutions")] = "mine",
    seed: Annotated[int | None, typer.Option(help="of the inputs; a new one each time if not given")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the result to this file")] = None,
    submission: Annotated[Path | None, typer.Option(help="grade the exercise files in this folder")] = None,
    classroom: Annotated[Path | None, typer.Option("--class", help="grade every folder in this one")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="with --class: a line a student")] = None,
    time_limit: Annotated[float, typer.Option(help="seconds for one exercise")] = TIME_LIMIT,
) -> None:
    """Grade exercises. The exit code is 0 only if every one of them passes; an elective that nobody asked for and that
    isn't begun is left out of this."""
    if importlib.util.find_spec("pytest") is None:
        raise FlashliteError("grading needs pytest: pip install pytest")
    course = find_course()
    exercises, seed = chosen_exercises(course, which), random.randrange(100_000) if seed is None else seed
    if classroom is not None:
        return grade_class(course, classroom, exercises, seed, csv_file or Path("grades.csv"), time_limit)
    folder, impl = _folder(course, impl, submission)
    printer = _Printer(course, folder, impl, seed)
    grades = grade(course, folder, exercises, seed, time_limit, printer)
    result = as_json(course, impl, seed, grades)
    target = json_file or course.root / STATE / "grade.json"
    _write(target, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if submission is None and impl == "mine":
        _remember(course, grades)
    lines = [f"{name} [bold]{points}/{most}[/bold]" for name, (points, most) in totals(course, grades).items()]
    screen.print("\n" + "\n".join([f"{lines[0]} → {_shown(target)}", *lines[1:]]))
    left_out = [g for g in grades if which is None and course.is_elective(g.id) and g.status == "TODO"]
    raise typer.Exit(0 if all(g.status == "PASS" for g in grades if g not in left_out) else 1)


def chosen_exercises(course: Course, which: str | None) -> list[Exercise]:
    """All exercises, those of a chapter, or one. Raises FlashliteError if there is none of that name."""
    if which is None:
        return list(course.exercises)
    of_chapter = [e for e in course.exercises if str(e.chapter) == which]
    return of_chapter or [course.find(which)]


def _folder(course: Course, impl: str, submission: Path | None) -> tuple[Path, str]:
    if submission is not None:
        if not submission.is_dir():
            raise FlashliteError(f"{submission} is no folder: name the one that holds a student's exercise files")
        if (folder := submission_folder(course, submission)) is None:
            raise FlashliteError(f"{submission} holds no exercise files, such as {next(iter(course.files))}")
        return folder, submission.resolve().name
    if impl not in {"mine", "solutions"}:
        raise FlashliteError(f"--impl {impl!r}: grade takes mine or solutions")
    return course.root / ("exercises" if impl == "mine" else "solutions"), impl


class _Printer:
    """Prints grades as they come in, under a line for each file."""

    def __init__(self, course: Course, folder: Path, impl: str, seed: int) -> None:
        self._course, self._folder, self._impl, self._seed, self._file = course, folder, impl, seed, ""

    def __call__(self, exercise: Exercise, grade: Grade) -> None:
        path = self._folder / exercise.file
        if self._file != exercise.file:
            self._file = exercise.file
            state = "edited" if path.is_file() and self._course.is_edited(path) else "untouched"
            shown = f"{_shown(path)} ({state})" if self._impl != "solutions" else _shown(path)
            screen.print(f"impl={escape(self._impl)}  {escape(shown)}  seed={self._seed}", style="dim")
        first, *rest = grade.message.splitlines() or [""]
        status = f"[{STYLES[grade.status]}]{grade.status:5}[/]"
        said = escape(first) if grade.status in {"FAIL", "ERROR"} else ""
        screen.print(f"{grade.id} {grade.title:52} {status} {grade.earned}  {said}".rstrip())
        if grade.status in {"FAIL", "ERROR"}:
            screen.print(f"    {escape(' '.join(rest))}  → flashlite hint {grade.id}".replace("      →", "    →"))
        if grade.status == "PASS" and self._impl == "mine":
            screen.print(f"    compare: solutions/{exercise.file}", style="dim")


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _write(path: Path, text: str) -> None:
    from flashlite.storage.atomic import write_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlashliteError(f"{path} cannot be written: {error.strerror}") from None
    write_file(path, text)


def grade_class(
    course: Course, folder: Path, exercises: list[Exercise], seed: int, target: Path, time_limit: float
) -> None:
    """Grade every student's folder in `folder`; writes a CSV with a line a student and prints the totals.

    A folder without exercise files may be that of a student who handed in nothing: it gets its line, and no points.
    """
    if (folder / MANIFEST).is_file():
        raise FlashliteError(f"{folder} is a clone of the course: name the folder that holds the students' folders")
    students = visible_folders(folder)
    if not any(submission_folder(course, student) for student in students):
        raise FlashliteError(
            f"{folder} holds no folders with exercise files: put each student's into a folder of their own"
        )
    rows = []
    for student in students:
        place = submission_folder(course, student)
        grades = grade(course, place or student, exercises, seed, time_limit)
        points, sums = {g.id: g.points for g in grades}, totals(course, grades)
        rows.append({"student": student.name, **points, **{name: earned for name, (earned, _) in sums.items()}})
        shown = "  ".join(f"{name} {earned}/{most}" for name, (earned, most) in sums.items()).removeprefix("total ")
        said = "" if place else "  no exercise files found in it"
        screen.print(escape(f"{student.name:30} {shown}{said}"))
        result = as_json(course, student.name, seed, grades)
        _write(course.root / STATE / "class" / f"{student.name}.json", json.dumps(result))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(target, table.getvalue())
    screen.print(f"{len(rows)} {'student' if len(rows) == 1 else 'students'}, seed {seed} → {_shown(target)}")


def _state(course: Course, name: str) -> dict[str, Any]:
    """What was noted before, by exercise, if this version can read it."""
    try:
        return read_object(course.root / STATE / name)
    except (OSError, ValueError):
        return {}


def _last_grades(course: Course) -> dict[str, Last]:
    """The last grading of each exercise, as far as it was noted in a form that is still understood."""
    noted = _state(course, "progress.json")
    return {e.id: last for e in course.exercises if (last := Last.read(noted.get(e.id), e.points)) is not None}


def _remember(course: Course, grades: list[Grade]) -> None:
    known = _last_grades(course) | {g.id: Last(g.points, g.status) for g in grades}
    text = json.dumps({identifier: asdict(last) for identifier, last in known.items()}, indent=1)
    _write(course.root / STATE / "progress.json", text + "\n")


def hint(exercise: Annotated[str, typer.Argument(help="its number, such as 3.2")]) -> None:
    """Show the next hint for an exercise; after the last one they begin again."""
    course = find_course()
    asked, shown = course.find(exercise), _state(course, "hints.json")
    number = shown.get(asked.id, 0)
    number = number % len(asked.hints) if type(number) is int else 0
    _write(course.root / STATE / "hints.json", json.dumps(shown | {asked.id: number + 1}))
    screen.print(f"{asked.id} {asked.title}: hint {number + 1} of {len(asked.hints)}", style="bold")
    screen.print(escape(asked.hints[number]))


def progress() -> None:
    """Show how far the course is done, by the last grading of each exercise."""
    course = find_course()
    known = _last_grades(course)
    table = Table("chapter", "", "points", "exercises", title="flashlite: the course", width=min(100, screen.width))
    for chapter, title in course.chapters.items():
        name = f"{chapter} {title}{' (elective)' if chapter in course.electives else ''}"
        table.add_row(*_chapter_row(name, [e for e in course.exercises if e.chapter == chapter], known))
    core = [e for e in course.exercises if not course.is_elective(e.id)]
    earned, most = _points(core, known)
    screen.print(table)
    screen.print(f"{bar(earned, most, 40)} {earned}/{most} points")
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
