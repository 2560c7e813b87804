"""Which hints a student was shown: noted beside the exercise files, so that it is handed in with them.

exercises/hints.json, {"3.2": {"shown": 2, "before": [1, 2]}}: how often a hint of this exercise was shown, and the
numbers of those that were shown before it passed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flashlite.course.manifest import Exercise
from flashlite.storage.atomic import write_file
from flashlite.storage.strict_json import read_object

FILE = "hints.json"


def hints_before(folder: Path, exercise: Exercise) -> tuple[int, ...]:
    """The numbers, from 1, of the hints that were shown before an exercise passed. folder: its file's."""
    before = _noted(_read(folder), exercise).get("before")
    numbers = before if isinstance(before, list) else []
    return tuple(sorted({n for n in numbers if type(n) is int and 1 <= n <= len(exercise.hints)}))


def next_hint(folder: Path, exercise: Exercise, passed: bool) -> int:
    """The number of the hint to show now, which is noted; after the last one they begin again.

    folder: of the exercise's file; passed: whether the exercise passed already, so that this hint no longer counts

    Raises StoreError if it can't be noted.
    """
    everything, before = _read(folder), hints_before(folder, exercise)
    shown = _noted(everything, exercise).get("shown")
    shown = shown if type(shown) is int and shown >= 0 else 0
    number = shown % len(exercise.hints) + 1
    counted = before if passed else tuple(sorted({*before, number}))
    noted = everything | {exercise.id: {"shown": shown + 1, "before": list(counted)}}
    write_file(folder / FILE, json.dumps(noted, indent=1) + "\n")
    return number


def _read(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / FILE)
    except (OSError, ValueError):  # there is none, or nobody can tell what it says
        return {}


def _noted(everything: dict[str, Any], exercise: Exercise) -> dict[str, Any]:
    noted = everything.get(exercise.id)
    return noted if isinstance(noted, dict) else {}
