"""Grade small mistakes in right answers, made by machine: python tools/mutate.py [3 | 3.2] ...

tools/mutants.py makes them of the engine's own functions, and of the other right answers in tests/alternatives.py. Each
must lose points with every seed, unless tests/mutants/equivalent.toml says why it is not a mistake; the right answers
must get all points. The exit code is 0 only if all of this holds.

--sample N    grade N mutants alone, chosen by --seed
--seeds N     grade each with N seeds, 3 unless given
--seed S      the first of these seeds, 0 unless given
--show        print what each mutant is told, instead of those that lose no points
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process with threads can't be forked

import __future__

import argparse
import ast
import contextlib
import copy
import gc
import json
import random
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from mutants import mutants

from flashlite.course.checks import SEED
from flashlite.course.generate import find_function, reference_path
from flashlite.course.grade import Grade, exercise_tests, summarize
from flashlite.course.limits import Limits
from flashlite.course.manifest import Course, Exercise, parse_toml, read_course
from flashlite.course.run_tests import Collector
from flashlite.course.uninitialized import spoil_empty_memory

ROOT = Path(__file__).parent.parent
ALTERNATIVES, EQUIVALENT = ROOT / "tests/alternatives.py", ROOT / "tests/mutants/equivalent.toml"
LIMITS = Limits(memory=1 * 10**9)
SECONDS = 5  # of processor time for one grading; the clock may show twenty times as many
Key = tuple[str, str]  # an exercise, and the change that a mutant made


@dataclass
class Case:
    """An answer to an exercise, and how it was graded with each seed. change: what is wrong with it, if anything."""

    exercise: Exercise
    change: str
    function: ast.FunctionDef
    grades: list[Grade] = field(default_factory=list)

    @property
    def key(self) -> Key:
        """What equivalent.toml calls it."""
        return self.exercise.id, self.change

    @property
    def lost(self) -> int:
        """With how many seeds it lost points."""
        return sum(grade.status != "PASS" for grade in self.grades)


def right_answers(course: Course) -> list[Case]:
    """The engine's own function for each exercise, and the alternatives. change: an alternative's name."""
    found = []
    for exercise in course.exercises:
        tree = ast.parse(reference_path(course.root, exercise).read_text(encoding="utf-8"))
        found.append(Case(exercise, "", find_function(tree, exercise.qualname)))
    for node in ast.parse(ALTERNATIVES.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            exercise = course.find(ast.literal_eval(node.decorator_list[0].args[0]))  # type: ignore[attr-defined]
            found.append(Case(exercise, node.name, copy.copy(node)))
            found[-1].function.decorator_list = []
    return found


def wrong_answers(right: Case) -> list[Case]:
    """Every mutant of a right answer."""
    of = f"{right.change}: " if right.change else ""
    return [Case(right.exercise, of + mutant.change, mutant.function) for mutant in mutants(right.function)]


def grade(course: Course, cases: list[Case], seeds: list[int], whole: bool = False) -> None:
    """Grade every case with every seed. whole: run all tests, also after one that fails, to know the message."""
    tests = {str(exercise_tests(course, case.exercise)) for case in cases}
    options = ["-s", "--noconftest", "-p", "no:cacheprovider", "-p", "no:terminal", "-o", "addopts="]
    with tempfile.TemporaryDirectory() as scratch:
        options += ["--basetemp", f"{scratch}/tests", "-o", "tmp_path_retention_policy=none"]
        grader = Grader(cases, seeds, whole, Path(scratch) / "result")
        pytest.main([*sorted(tests), *options], plugins=[grader])
    if any(len(case.grades) < len(seeds) for case in cases):
        sys.exit("mutate: not all cases were graded")


class Grader:
    """A pytest plugin: collects the tests once, and then runs them on each case, in a process of its own."""

    def __init__(self, cases: list[Case], seeds: list[int], whole: bool, result: Path) -> None:
        self.cases, self.seeds, self.whole, self.result = cases, seeds, whole, result

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of running each test once."""
        gc.collect()
        gc.freeze()  # else a child's first collection would copy all that it shares with this process
        for case in self.cases:
            self.result.unlink(missing_ok=True)
            process = os.fork()
            if process == 0:
                self._run(session, case)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            case.grades = self._grades(case, status)
        return True

    def _run(self, session: pytest.Session, case: Case) -> None:
        """Grade a case with every seed, write how its tests ended, and end this process."""
        with contextlib.suppress(BaseException):
            limit(len(self.seeds))
            put_in_place(case.exercise, case.function)
            self.result.write_text(json.dumps([self._results(session, case, seed) for seed in self.seeds]))
        os._exit(0)

    def _results(self, session: pytest.Session, case: Case, seed: int) -> list[dict[str, Any]]:
        os.environ[SEED] = str(seed)
        spoil_empty_memory(seed)
        collector, items = Collector(case.exercise.id, LIMITS), list(session.items)
        collector.pytest_collection_modifyitems(items)
        session.config.pluginmanager.register(collector)
        for item, following in zip(items, [*items[1:], None], strict=True):
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if not self.whole and collector.results[-1]["status"] != "PASS":
                break
        session.config.pluginmanager.unregister(collector)
        return collector.results

    def _grades(self, case: Case, status: int) -> list[Grade]:
        if self.result.exists():
            return [summarize(case.exercise, results) for results in json.loads(self.result.read_text())]
        ended = Grade(case.exercise.id, "", 0, case.exercise.points, "FAIL", f"the process ended with {status}")
        return [ended] * len(self.seeds)


def limit(times: int) -> None:
    """End this process without a word if it takes too long, computing or waiting."""
    LIMITS.apply()
    signal.setitimer(signal.ITIMER_PROF, times * SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 20 * times * SECONDS)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def put_in_place(exercise: Exercise, function: ast.FunctionDef) -> None:
    """Let the engine's function, wherever it was imported by now, run another one's code."""
    module, made = import_module(exercise.module), dict[str, FunctionType]()
    tree = ast.fix_missing_locations(ast.Module([function], []))
    code = compile(tree, exercise.file, "exec", __future__.annotations.compiler_flag)
    exec(code, module.__dict__, made)
    original = reduce(getattr, exercise.qualname.split("."), module)
    original.__code__ = made[function.name].__code__
    original.__defaults__ = made[function.name].__defaults__


def equivalents() -> dict[Key, str]:
    """Changes that are not mistakes, with the reason."""
    entries = parse_toml(EQUIVALENT.read_text(encoding="utf-8")).get("equivalent", [])
    return {(entry["exercise"], entry["change"]): entry["reason"] for entry in entries}


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help="chapters or exercises; all if not given")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true")
    return parser.parse_args()


def main() -> None:
    given, course, known = arguments(), read_course(ROOT), equivalents()
    seeds = list(range(given.seed, given.seed + given.seeds))
    which = set(given.which) or {str(chapter) for chapter in course.chapters}
    right = [case for case in right_answers(course) if which & {case.exercise.id, str(case.exercise.chapter)}]
    wrong = [case for answer in right for case in wrong_answers(answer)]
    stale = {key for key in known if key[0] in {c.exercise.id for c in right}} - {case.key for case in wrong}
    wrong = [case for case in wrong if case.key not in known]
    if given.sample is not None:
        wrong = random.Random(given.seed).sample(wrong, min(given.sample, len(wrong)))
    grade(course, [*right, *wrong], seeds, given.show)
    for case in wrong if given.show else ():
        print(f"{case.exercise.id} {case.change}\n    {case.grades[0].status} {case.grades[0].message}")
    faults = [f"{c.exercise.id} {c.change or 'reference'} lost points: {c.grades}" for c in right if c.lost]
    passed = {case.key: len(seeds) - case.lost for case in wrong if case.lost < len(seeds)}
    faults += [f"{exercise} got all points with {n} seeds: {change}" for (exercise, change), n in passed.items()]
    faults += [f"{exercise} has no such mutant, which {EQUIVALENT.name} names: {change}" for exercise, change in stale]
    print(*faults, f"{len(right)} right answers and {len(wrong)} mutants graded, {len(faults)} faults", sep="\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
