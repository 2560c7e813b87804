"""What commands note in the course's folder `.flashlite`: the last grading of each exercise."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flashlite.course.grade import Grade
from flashlite.course.manifest import Course
from flashlite.errors import FlashliteError
from flashlite.storage.atomic import write_file
from flashlite.storage.strict_json import read_object

STATE = ".flashlite"
STATUSES = ("PASS", "FAIL", "TODO", "ERROR")


@dataclass(frozen=True)
class Last:
    """How an exercise did when it was last graded."""

    points: int
    status: str

    @classmethod
    def read(cls, noted: object, most: int) -> Last | None:
        """What was noted of an exercise that is worth `most` points now; None if it makes no sense."""
        points, status = (noted.get("points"), noted.get("status")) if isinstance(noted, dict) else (None, None)
        if type(points) is not int or not isinstance(status, str) or status not in STATUSES:
            return None
        whole = {"PASS": most, "TODO": 0}  # these two say it all, whatever the exercise was worth when it was graded
        return cls(whole.get(status, max(0, min(points, most - 1))), status)


def read_state(path: Path) -> dict[str, Any]:
    """The object in a JSON file that commands write; empty if there is none that this version can read."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}


def last_grades(course: Course) -> dict[str, Last]:
    """The last grading of each exercise, as far as it was noted in a form that is still understood."""
    noted = read_state(course.root / STATE / "progress.json")
    return {e.id: last for e in course.exercises if (last := Last.read(noted.get(e.id), e.points)) is not None}


def remember(course: Course, grades: Iterable[Grade]) -> None:
    """Note how exercises did. Raises FlashliteError if it can't be written."""
    known = last_grades(course) | {g.id: Last(g.points, g.status) for g in grades}
    text = json.dumps({identifier: asdict(last) for identifier, last in known.items()}, indent=1)
    write_text(course.root / STATE / "progress.json", text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, and the folders above it. Raises FlashliteError if that can't be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlashliteError(f"{path} cannot be written: {error.strerror}") from None
    write_file(path, text)
