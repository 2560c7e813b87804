"""Grading: each exercise in a process of its own, within limits, the other exercises on the reference."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flashlite.course.limits import Limits, environment, missing
from flashlite.course.manifest import Course, Exercise
from flashlite.course.plug import Plug, command

log = logging.getLogger("flashlite")

TIME_LIMIT = 60.0  # seconds for one exercise
LIMITS = Limits()
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

    @property
    def earned(self) -> str:
        """Its points as they are shown: "2/3", or "warm-up"."""
        return f"{self.points}/{self.max}" if self.max else "warm-up"


def exercise_tests(course: Course, exercise: Exercise) -> Path:
    """The tests of an exercise's file."""
    return course.root / "tests" / "exercises" / f"test_{exercise.file}"


def grade(
    course: Course, folder: Path, exercises: Sequence[Exercise], seed: int, time_limit: float = TIME_LIMIT,
    done: Callable[[Exercise, Grade], None] = lambda exercise, grade: None,
) -> list[Grade]:  # fmt: skip
    """Grade the files in a folder, a few exercises at a time. done: called with each grade, in order.

    What this system can't limit of a student's code is announced in one line.
    """
    if (line := missing()) is not None:
        log.warning("flashlite: %s", line)
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
    others = [e.qualname for e in course.files[exercise.file] if e is not exercise] + course.hidden(exercise.file)
    limits, plug = replace(LIMITS, seconds=time_limit), Plug(str(path.resolve()), others)
    with tempfile.TemporaryDirectory(prefix="flashlite-grade-", ignore_cleanup_errors=True) as scratch:
        result, work = Path(scratch) / "result.json", Path(scratch) / "work"
        work.mkdir()
        run = command({exercise.module: plug}, "flashlite.course.run_tests")
        run += [exercise.id, str(exercise_tests(course, exercise)), str(seed), str(result), limits.to_json()]
        ended = _run(run, work, environment(os.environ, str(course.root), str(work)), time_limit)
        if ended is None:
            return _grade(exercise, 0, "FAIL", f"still running after {time_limit:g} s: is there an endless loop?")
        if (limit := limits.ended(ended)) is not None:
            return _grade(exercise, 0, "FAIL", limit)
        if not result.is_file():
            return _grade(exercise, 0, "ERROR", f"the file ended the grading process: {_exit(ended)}")
        try:
            return summarize(exercise, json.loads(result.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            return _grade(exercise, 0, "ERROR", "the file wrote over the result of its grading")


def summarize(exercise: Exercise, results: list[dict[str, str | int]]) -> Grade:
    """The grade of an exercise whose tests ended like this: points of those that passed, message of the worst."""
    if not results:
        return _grade(exercise, 0, "ERROR", "none of its tests ran")
    worst = min(results, key=lambda result: WORST_FIRST.index(str(result["status"])))
    earned = sum(int(result["points"]) for result in results if result["status"] == "PASS")
    points = min(earned, exercise.points)
    if worst["status"] != "PASS":
        points = min(points, max(0, exercise.points - 1))  # a wrong answer always loses something
    if worst["status"] == "TODO":
        points = 0
    return _grade(exercise, points, str(worst["status"]), str(worst["message"]))


def _grade(exercise: Exercise, points: int, status: str, message: str) -> Grade:
    return Grade(exercise.id, exercise.title, points, exercise.points, status, message)


def _run(arguments: list[str], folder: Path, variables: dict[str, str], time_limit: float) -> int | None:
    """The exit code of a process, or None if the time limit killed it; all that it started ends with it."""
    process = subprocess.Popen(
        arguments, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(time_limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it left running."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing runs any more
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _exit(code: int) -> str:
    if code == -9:
        return "it was killed, as the system does when memory runs out"
    if code < 0:
        return f"it crashed with {signal.Signals(-code).name}"
    return f"it left with code {code}, as by os._exit"


def totals(course: Course, grades: Sequence[Grade]) -> dict[str, tuple[int, int]]:
    """The points that were earned, and the most that there are: in all, and of each elective for itself.

    The names are "total" and "elective 9"; one is left out if no exercise of its chapters was graded.
    """
    sums: dict[str, tuple[int, int]] = {}
    for g in grades:
        name = f"elective {g.id.partition('.')[0]}" if course.is_elective(g.id) else "total"
        points, most = sums.get(name, (0, 0))
        sums[name] = points + g.points, most + g.max
    return sums


def as_json(course: Course, impl: str, seed: int, grades: Sequence[Grade]) -> dict[str, object]:
    """What `flashlite grade --json` writes."""
    sums = totals(course, grades)
    total, most = sums.pop("total", (0, 0))
    electives = {name: {"total": points, "max": of} for name, (points, of) in sums.items()}
    facts = {"impl": impl, "seed": seed, "total": total, "max": most, "electives": electives}
    return facts | {"exercises": [asdict(g) for g in grades]}


def submission_folder(course: Course, folder: Path) -> Path | None:
    """Where a submission's exercise files are, None if nowhere.

    They are in exercises/ in the folder, in the folder itself, or, as where an archive was unpacked, in the one folder
    that it holds.
    """
    for place in (folder / "exercises", folder):
        if any((place / name).is_file() for name in course.files):
            return place
    inner = visible_folders(folder)
    return submission_folder(course, inner[0]) if len(inner) == 1 else None


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, but for those that systems and tools make, such as .git and __MACOSX.

    A folder that can't be read holds none.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    except OSError:
        return []
