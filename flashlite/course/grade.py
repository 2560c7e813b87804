"""Grading: each exercise in a process of its own, with a time limit, the other exercises on the reference."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from flashlite.course.manifest import Course, Exercise
from flashlite.course.plug import Plug, command

TIME_LIMIT = 60.0  # seconds for one exercise
WORST_FIRST = ("ERROR", "FAIL", "TODO", "PASS")


@dataclass(frozen=True)
class Grade:
    """How one exercise did. status: PASS, FAIL, TODO (nothing written yet) or ERROR (it could not be judged)."""

    id: str
    title: str
    points: int
    max: int
    status: str
    message: str


def exercise_tests(course: Course, exercise: Exercise) -> Path:
    """The tests of an exercise's file."""
    return course.root / "tests" / "exercises" / f"test_{exercise.file}"


def grade(
    course: Course, folder: Path, exercises: Sequence[Exercise], seed: int, time_limit: float = TIME_LIMIT,
    done: Callable[[Exercise, Grade], None] = lambda exercise, grade: None,
) -> list[Grade]:  # fmt: skip
    """Grade the files in a folder, two exercises at a time. done: called with each grade, in order."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        waiting = [pool.submit(grade_one, course, folder, exercise, seed, time_limit) for exercise in exercises]
        grades = []
        for exercise, future in zip(exercises, waiting, strict=True):
            grades.append(future.result())
            done(exercise, grades[-1])
    return grades


def grade_one(course: Course, folder: Path, exercise: Exercise, seed: int, time_limit: float = TIME_LIMIT) -> Grade:
    """Grade one exercise of the file in a folder."""
    path = folder / exercise.file
    if not path.is_file():
        return _grade(exercise, 0, "ERROR", f"{path} is missing")
    if not course.is_edited(path):
        return _grade(exercise, 0, "TODO", "")
    others = [e.qualname for e in course.files[exercise.file] if e is not exercise]
    with tempfile.TemporaryDirectory(prefix="flashlite-grade-") as scratch:
        result = Path(scratch) / "result.json"
        run = command({exercise.module: Plug(str(path.resolve()), others)}, "flashlite.course.run_tests")
        arguments = [exercise.id, str(exercise_tests(course, exercise)), str(seed), str(result)]
        ended = _run([*run, *arguments], course.root, time_limit)
        if ended is None:
            return _grade(exercise, 0, "FAIL", f"still running after {time_limit:g} s: is there an endless loop?")
        if not result.is_file():
            return _grade(exercise, 0, "ERROR", f"the file ended the grading process: {_exit(ended)}")
        return summarize(exercise, json.loads(result.read_text()))


def summarize(exercise: Exercise, results: list[dict[str, str | int]]) -> Grade:
    """The grade of an exercise whose tests ended like this: points of those that passed, message of the worst."""
    if not results:
        return _grade(exercise, 0, "ERROR", "none of its tests ran")
    worst = min(results, key=lambda result: WORST_FIRST.index(str(result["status"])))
    points = sum(int(result["points"]) for result in results if result["status"] == "PASS")
    if worst["status"] != "PASS":
        points = min(points, exercise.points - 1)  # a wrong answer always loses something
    if worst["status"] == "TODO":
        points = 0
    return _grade(exercise, points, str(worst["status"]), str(worst["message"]))


def _grade(exercise: Exercise, points: int, status: str, message: str) -> Grade:
    return Grade(exercise.id, exercise.title, points, exercise.points, status, message)


def _run(arguments: list[str], folder: Path, time_limit: float) -> int | None:
    """The exit code of a process, or None if it had to be killed, with all that it started, at the time limit."""
    process = subprocess.Popen(
        arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(time_limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _exit(code: int) -> str:
    if code < 0:
        return f"it crashed with {signal.Signals(-code).name}"
    return f"it left with code {code}, as by os._exit"


def as_json(impl: str, seed: int, grades: Sequence[Grade]) -> dict[str, object]:
    """What `flashlite grade --json` writes."""
    total, most = sum(g.points for g in grades), sum(g.max for g in grades)
    return {"impl": impl, "seed": seed, "total": total, "max": most, "exercises": [asdict(g) for g in grades]}


def submission_folder(folder: Path) -> Path:
    """Where a submission's exercise files are: the folder itself, or exercises/ in it."""
    return folder / "exercises" if (folder / "exercises").is_dir() else folder
