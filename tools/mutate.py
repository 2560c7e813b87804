"""Grade small mistakes in right answers, made by machine: python tools/mutate.py [3 | 3.2] ...

tools/mutants.py makes them of the engine's own functions, and of the other right answers in tests/alternatives.py. Each
must lose points with every seed, unless tests/mutants/equivalent.toml says why it is not a mistake; the right answers
must get all points. The exit code is 0 only if all of this holds.

--hand        grade those of tests/mutants/ instead, which a person made; each must be told what it `says`, and none
              may be told another mistake than its own
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
import gc
import json
import random
import re
import signal
import sys
import tempfile
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from answers import EQUIVALENT, ROOT, Case, Key, equivalents, hand_made, machine_made, right_answers

from flashlite.course.checks import SEED
from flashlite.course.grade import Grade, exercise_tests, summarize
from flashlite.course.limits import Limits
from flashlite.course.manifest import Course, Exercise, read_course
from flashlite.course.run_tests import Collector
from flashlite.course.uninitialized import spoil_empty_memory

LIMITS = Limits(memory=1 * 10**9)
SECONDS = 5  # of processor time for one grading; the clock may show twenty times as many


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
        if session.testsfailed:
            sys.exit("mutate: a file of tests can't be imported")
        for item in session.items:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)  # imports what is imported in passing
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
            limit()
            put_in_place(case.exercise, case.function)
            self.result.write_text(json.dumps([self._results(session, case, seed) for seed in self.seeds]))
        os._exit(0)

    def _results(self, session: pytest.Session, case: Case, seed: int) -> list[dict[str, Any]]:
        os.environ[SEED] = str(seed)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)
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


def limit() -> None:
    """Let this process have what a grading may have, and print nothing."""
    LIMITS.apply()
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


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help="chapters or exercises; all if not given")
    parser.add_argument("--hand", action="store_true")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true")
    return parser.parse_args()


def diagnosis(grade: Grade) -> str:
    """The mistake that a message names, above the line that says what was found; empty if it names none, as where the
    answer raised an error."""
    return " ".join(grade.message.splitlines()[:-1]) if grade.status == "FAIL" else ""


def misled(case: Case) -> list[Grade]:
    """The grades that name another mistake than the one that this case says it has."""
    return [g for g in case.grades if diagnosis(g) and not (case.says and re.search(case.says, diagnosis(g)))]


def told(cases: list[Case]) -> str:
    """How many of these wrong answers, made by hand, were told their own mistake, none, and another one."""
    wrong = [case for case in cases if misled(case)]
    right = [case for case in cases if case not in wrong and all(diagnosis(grade) for grade in case.grades)]
    silent = len(cases) - len(right) - len(wrong)
    return f"{len(right)} mutants are told their mistake, {silent} that they are wrong, {len(wrong)} another mistake"


def faults(right: list[Case], wrong: list[Case], hand: bool) -> list[str]:
    """What is wrong with how these answers were graded, a line each. hand: whether a person made the wrong ones."""
    found = [f"{c.exercise.id} {c.change or 'reference'} lost points: {c.grades}" for c in right if c.lost]
    for case in wrong:
        if passed := len(case.grades) - case.lost:
            found.append(f"{case.exercise.id} got all points with {passed} seeds: {case.change}")
        unnamed = [g.message for g in case.grades if g.status != "PASS" and not re.search(case.says, g.message)]
        found += [f"{case.exercise.id} {case.change} isn't told {case.says!r}: {message}" for message in unnamed]
        others = misled(case) if hand else []
        found += [f"{case.exercise.id} {case.change} is told another mistake: {grade.message}" for grade in others]
    return found


def sample(right: list[Case], number: int, seed: int) -> list[Case]:
    """So many mutants, chosen by the seed: four each of some right answers, since making all takes long."""
    chance = random.Random(seed)
    some = chance.sample(right, min(len(right), -(-number // 4)))
    made = [machine_made(answer) for answer in some]
    return [case for cases in made for case in chance.sample(cases, min(4, len(cases)))]


def main() -> None:
    given, course, known = arguments(), read_course(ROOT), equivalents()
    seeds = list(range(given.seed, given.seed + given.seeds))
    which = set(given.which) or {str(chapter) for chapter in course.chapters}
    right = [case for case in right_answers(course) if which & {case.exercise.id, str(case.exercise.chapter)}]
    asked, stale = {case.exercise.id for case in right}, set[Key]()
    if given.hand:
        wrong = [case for case in hand_made(course) if case.exercise.id in asked]
    elif given.sample is not None:
        right, wrong = [], sample(right, given.sample, given.seed)
    else:
        wrong = [case for answer in right for case in machine_made(answer)]
        stale = {key for key in known if key[0] in asked} - {case.key for case in wrong}
    if not given.hand:
        wrong = [case for case in wrong if case.key not in known]
    grade(course, [*right, *wrong], seeds, given.show or given.hand)
    for case in wrong if given.show else ():
        print(f"{case.exercise.id} {case.change}\n    {case.grades[0].status} {case.grades[0].message}")
    found = faults(right, wrong, given.hand)
    found += [f"{exercise} has no such mutant, which {EQUIVALENT.name} names: {change}" for exercise, change in stale]
    if given.hand:
        print(told(wrong))
    print(*found, f"{len(right)} right answers and {len(wrong)} mutants graded, {len(found)} faults", sep="\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
