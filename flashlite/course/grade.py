"""Grading: each exercise in a process of its own, within limits, the other exercises on the reference."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from flashlite.course.classroom.cold import Run, run_cold
from flashlite.course.classroom.hints import hints_before
from flashlite.course.classroom.warm import Warm
from flashlite.course.limits import Limits, environment, missing
from flashlite.course.manifest import Course, Exercise
from flashlite.course.plug import Plug

log = logging.getLogger("flashlite")

TIME_LIMIT = 60.0  # seconds for one exercise
JOBS = min(8, os.cpu_count() or 1)  # grading processes at a time: each may take LIMITS.memory
LIMITS = Limits()
WORST_FIRST = ("ERROR", "FAIL", "TODO", "PASS")
LITTER = {"lost+found", "System Volume Information", "node_modules", "venv"}  # folders of systems and tools
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
ENDINGS = re.compile(rf"({'|'.join(map(re.escape, ARCHIVES))})+$", re.IGNORECASE)


@dataclass(frozen=True)
class Grade:
    """How one exercise did.

    status: PASS, FAIL, TODO (nothing written yet) or ERROR (it could not be judged)
    message: lines that say what is wrong: what the mistake looks like, if that is known, and where it shows
    hints: the numbers of the hints that were shown before it passed
    """

    id: str
    title: str
    points: int
    max: int
    status: str
    message: str
    hints: tuple[int, ...] = ()

    @property
    def earned(self) -> str:
        """Its points as they are shown: "2/3", or "warm-up"."""
        return f"{self.points}/{self.max}" if self.max else "warm-up"


def exercise_tests(course: Course, exercise: Exercise) -> Path:
    """The tests of an exercise's file."""
    return course.root / "tests" / "exercises" / f"test_{exercise.file}"


def grade(
    course: Course, folder: Path, exercises: Sequence[Exercise], seed: int, time_limit: float = TIME_LIMIT,
    done: Callable[[Exercise, Grade], None] = lambda exercise, grade: None, jobs: int = JOBS,
) -> list[Grade]:  # fmt: skip
    """Grade the files in a folder, `jobs` processes at a time. done: called with each grade, in order.

    What this system can't limit of a student's code is announced in one line.
    """
    grades = []
    for found in grade_each(course, [(folder, exercise) for exercise in exercises], seed, time_limit, jobs):
        grades.append(found)
        done(exercises[len(grades) - 1], found)
    return grades


def grade_folders(
    course: Course, folders: Sequence[Path], exercises: Sequence[Exercise], seed: int,
    time_limit: float = TIME_LIMIT, jobs: int = JOBS,
) -> Iterator[list[Grade]]:  # fmt: skip
    """The grades of the files in each of these folders, in order; `jobs` processes at a time, of several folders."""
    tasks = [(folder, exercise) for folder in folders for exercise in exercises]
    with contextlib.closing(grade_each(course, tasks, seed, time_limit, jobs)) as grades:
        for _ in folders:
            yield [next(grades) for _ in exercises]


def grade_each(
    course: Course, tasks: Sequence[tuple[Path, Exercise]], seed: int, time_limit: float, jobs: int
) -> Generator[Grade]:
    """The grade of each exercise in its folder, in order; whoever stops asking for more ends the grading."""
    if (line := missing()) is not None:
        log.warning("flashlite: %s", line)
    pool, processes = ThreadPoolExecutor(jobs), _warm_processes(course, len(tasks), jobs)
    idle = SimpleQueue[Warm]()
    for process in processes:
        idle.put(process)

    def judge(folder: Path, exercise: Exercise) -> Grade:
        if not processes:
            return grade_one(course, folder, exercise, seed, time_limit)
        process = idle.get()
        try:
            return grade_one(course, folder, exercise, seed, time_limit, process.run)
        finally:
            idle.put(process)

    try:
        waiting = [pool.submit(judge, folder, exercise) for folder, exercise in tasks]
        for (folder, exercise), future in zip(tasks, waiting, strict=True):
            yield replace(future.result(), hints=hints_before(folder, exercise))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.close()
        pool.shutdown()


def _warm_processes(course: Course, tasks: int, jobs: int) -> list[Warm]:
    """As many warm processes as there are jobs, where there are more tasks than jobs and children can be forked."""
    return [Warm(course.root) for _ in range(jobs)] if sys.platform == "linux" and tasks > jobs else []


def grade_one(
    course: Course, folder: Path, exercise: Exercise, seed: int, time_limit: float = TIME_LIMIT,
    run: Run = run_cold,
) -> Grade:  # fmt: skip
    """Grade one exercise of the file in a folder. run: has a process run its tests."""
    path = folder / exercise.file
    if not path.is_file():
        return _grade(exercise, 0, "ERROR", f"{path} is missing")
    if not course.is_edited(path):
        return _grade(exercise, 0, "TODO", "")
    others = [e.qualname for e in course.files[exercise.file] if e is not exercise] + course.hidden(exercise.file)
    limits, plugs = replace(LIMITS, seconds=time_limit), {exercise.module: Plug(str(path.resolve()), others)}
    with tempfile.TemporaryDirectory(prefix="flashlite-grade-", ignore_cleanup_errors=True) as scratch:
        result, work = Path(scratch) / "result.json", Path(scratch) / "work"
        work.mkdir()
        tests = str(exercise_tests(course, exercise))
        arguments = [exercise.id, tests, str(seed), str(result), limits.to_json()]
        variables = environment(os.environ, str(course.root), str(work))
        return _judged(exercise, limits, run(plugs, arguments, work, variables, time_limit), result)


def _judged(exercise: Exercise, limits: Limits, ended: int | None, result: Path) -> Grade:
    """The grade of an exercise whose process ended with this code, or was still running, and left a result or none."""
    if ended is None:
        late = f"still running after {limits.seconds:g} s: is it too slow, or is there an endless loop?"
        return _grade(exercise, 0, "FAIL", late)
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
    return [path for path in _visible(folder) if path.is_dir() and path.name not in LITTER]


def packed_archives(folder: Path) -> list[Path]:
    """The archives in a folder that nobody has unpacked beside them, sorted."""
    visible = _visible(folder)
    unpacked = {path.name for path in visible if path.is_dir()}
    files = [path for path in visible if path.name.lower().endswith(ARCHIVES) and path.is_file()]
    return [path for path in files if ENDINGS.sub("", path.name) not in unpacked]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__", "$", "@", "~")))
    except OSError:
        return []
