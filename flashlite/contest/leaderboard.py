"""A class in the contest: every student's entry, judged on the same traces, the best first."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashlite.contest.judge import ENTRY, Contest, Standing
from flashlite.course.grade import visible_folders
from flashlite.course.manifest import MANIFEST
from flashlite.errors import FlashliteError


@dataclass(frozen=True)
class Place:
    """A student's place on the leaderboard. student: the folder's name."""

    student: str
    standing: Standing


def entry_in(folder: Path, name: str) -> Path | None:
    """A student's entry, None if there is none: in exercises/, in the folder itself, or in the one folder it holds."""
    for path in (folder / "exercises" / name, folder / name):
        if path.is_file():
            return path
    inner = visible_folders(folder)
    return entry_in(inner[0], name) if len(inner) == 1 else None


def play_class(
    contest: Contest, folder: Path, time_limit: float, say: Callable[[Place], None] = lambda place: None
) -> list[Place]:
    """Judge the entry of every student's folder in `folder`. say: called with each as it is judged.

    Returns the places, the best first, those without a score last. Raises FlashliteError if no student has an entry.
    """
    if (folder / MANIFEST).is_file():
        raise FlashliteError(f"{folder} is a clone of the course: name the folder that holds the students' folders")
    students = {student: entry_in(student, contest.file) for student in visible_folders(folder)}
    if not any(students.values()):
        raise FlashliteError(
            f"{folder} holds no folders with a {contest.file}: put each student's into one of their own"
        )
    places = []
    for student, entry in students.items():
        missing = Standing(contest.rows, None, f"handed in no {contest.file}")
        places.append(Place(student.name, contest.enter(entry, time_limit) if entry else missing))
        say(places[-1])
    return sorted(places, key=lambda place: (place.standing.score is None, -(place.standing.score or 0.0)))


def as_csv(places: Sequence[Place]) -> str:
    """A line a student: the score, what was read for a token, and why there is no score."""
    columns = list(next(iter(places[0].standing.rows.values())).columns)
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["student", "score", *columns, "message"])
    for place in places:
        row, points = place.standing.rows.get(ENTRY), place.standing.score
        read = [f"{row.columns[name]:.4f}" for name in columns] if row else [""] * len(columns)
        writer.writerow([place.student, "" if points is None else f"{points:.2f}", *read, place.standing.message])
    return table.getvalue()
