"""What teachers use: a whole class graded to a table, an autograder for Gradescope, a workflow for GitHub Classroom."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flashlite.cli.grades import screen, shown, spoken_hints
from flashlite.course.classroom import github, gradescope
from flashlite.course.classroom.state import STATE, write_text
from flashlite.course.grade import (
    Grade,
    as_json,
    grade_folders,
    packed_archives,
    submission_folder,
    totals,
    visible_folders,
)
from flashlite.course.manifest import MANIFEST, Course, Exercise, find_course
from flashlite.errors import FlashliteError

WhichArgument = Annotated[
    list[str] | None, typer.Argument(help="chapters (3) and exercises (3.2); all but the electives if not given")
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("gradescope")(gradescope_command)
    app.command("classroom")(classroom_command)


def gradescope_command(
    out: Annotated[Path, typer.Argument(help="the zip to write")], which: WhichArgument = None
) -> None:
    """Write the zip that makes these exercises an autograder of Gradescope."""
    course = find_course()
    exercises = chosen_or_core(course, which)
    count = gradescope.write_zip(course, out, exercises)
    points = sum(exercise.points for exercise in exercises)
    screen.print(f"{shown(out)}: {count} files, {len(exercises)} exercises, {points} points")


def classroom_command(
    out: Annotated[Path, typer.Argument(help=f"the workflow to write: {github.PLACE} of a template repository")],
    which: WhichArgument = None,
) -> None:
    """Write the workflow by which GitHub Classroom grades these exercises."""
    exercises = chosen_or_core(find_course(), which)
    write_text(out, github.workflow(exercises))
    points = sum(exercise.points for exercise in exercises)
    screen.print(f"{shown(out)}: {len(exercises)} exercises, {points} points")


def chosen_exercises(course: Course, which: Sequence[str] | None) -> list[Exercise]:
    """The exercises of these chapters and of these ids, in the course's order; all if none is named.

    Raises FlashliteError for a name that there isn't.
    """
    chosen: set[str] = set()
    for name in which or []:
        of_chapter = [e for e in course.exercises if str(e.chapter) == name]
        chosen |= {e.id for e in of_chapter or [course.find(name)]}
    return [e for e in course.exercises if not which or e.id in chosen]


def chosen_or_core(course: Course, which: Sequence[str] | None) -> list[Exercise]:
    """`chosen_exercises`, without the electives if none is named."""
    return [e for e in chosen_exercises(course, which) if which or not course.is_elective(e.id)]


@dataclass(frozen=True)
class Classroom:
    """A folder of students' folders, and how they are to be graded.

    table: the CSV to write
    seed, time_limit, jobs: as `grade` takes them
    """

    folder: Path
    table: Path
    seed: int
    time_limit: float
    jobs: int


def grade_class(course: Course, classroom: Classroom, exercises: Sequence[Exercise]) -> None:
    """Grade every student's folder; writes a CSV with a line a student, and prints the totals as they come in.

    A folder without exercise files may be that of a student who handed in nothing: it gets its line, and no points.
    """
    places = student_places(course, classroom.folder)
    folders = [place or student for student, place in places.items()]
    graded = grade_folders(course, folders, exercises, classroom.seed, classroom.time_limit, classroom.jobs)
    rows = []
    for (student, place), grades in zip(places.items(), graded, strict=True):
        rows.append(table_row(course, student.name, grades))
        screen.print(escape(student_line(course, student.name, grades, found=place is not None)))
        result = as_json(course, student.name, classroom.seed, grades)
        write_text(course.root / STATE / "class" / f"{student.name}.json", json.dumps(result))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(classroom.table, table.getvalue())
    for archive in packed_archives(classroom.folder):
        screen.print(escape(f"{shown(archive)} is not graded: unpack it into a folder of its own"))
    many = f"{len(rows)} {'student' if len(rows) == 1 else 'students'}"
    screen.print(f"{many}, seed {classroom.seed} → {shown(classroom.table)}")


def student_places(course: Course, folder: Path) -> dict[Path, Path | None]:
    """Where the exercise files of each student are, by the student's folder; None where there are none.

    Raises FlashliteError if this is not a folder of students.
    """
    if (folder / MANIFEST).is_file():
        raise FlashliteError(f"{folder} is a clone of the course: name the folder that holds the students' folders")
    places = {student: submission_folder(course, student) for student in visible_folders(folder)}
    if not any(places.values()):
        raise FlashliteError(
            f"{folder} holds no folders with exercise files: put each student's into a folder of their own"
        )
    return places


def table_row(course: Course, student: str, grades: Sequence[Grade]) -> dict[str, str | int]:
    """A student's line of the CSV: points by exercise, their totals, and how many hints were shown."""
    sums = {name: earned for name, (earned, _) in totals(course, grades).items()}
    hints = sum(len(g.hints) for g in grades)
    return {"student": student, **{g.id: g.points for g in grades}, **sums, "hints": hints}


def student_line(course: Course, student: str, grades: Sequence[Grade], found: bool) -> str:
    """A student's line on the screen. found: whether there were any exercise files."""
    sums = [f"{name} {earned}/{most}" for name, (earned, most) in totals(course, grades).items()]
    points = "  ".join(sums).removeprefix("total ")
    told = [f"{student:30} {points}", spoken_hints(sum(len(g.hints) for g in grades))]
    return "  ".join(filter(None, [*told, "" if found else "no exercise files found in it"]))
