"""Grading by children of a warm process: each is judged as in a process of its own, whatever the one before it did."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from flashlite.course import grade as grading
from flashlite.course.classroom.warm import Warm, _number
from flashlite.course.grade import Grade, grade, grade_one
from flashlite.course.manifest import Course

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
FILE, MARK = "ex07_speculative.py", "def expected_tokens"


@pytest.fixture(scope="module")
def warm(course: Course) -> Iterator[Warm]:
    process = Warm(course.root)
    yield process
    process.close()


def judged(warm: Warm, course: Course, folder: Path, code: str = "", seconds: float = 60.0) -> Grade:
    """A solved file with code at its top, graded."""
    solved = (ROOT / "solutions" / FILE).read_text()
    (folder / FILE).write_text(solved.replace(MARK, f"import os, sys\n{code}\n\n\n{MARK}", 1))
    return grade_one(course, folder, course.find("7.1"), 1, seconds, warm.run)


def test_no_child_disturbs_the_next(warm: Warm, course: Course, tmp_path: Path) -> None:
    changes = "os.environ['LEFT'] = sys.left = '1'\nos.chdir('/')\nos.write(1, b'9\\n9\\n')\nassert not os.read(0, 9)"
    assert (found := judged(warm, course, tmp_path, changes)).status == "PASS", found
    clean = "assert 'LEFT' not in os.environ and not hasattr(sys, 'left') and os.getcwd() == os.environ['HOME']"
    assert judged(warm, course, tmp_path, clean).status == "PASS"
    process = warm._process
    late = judged(warm, course, tmp_path, "while True:\n    pass", seconds=0.5)
    assert (late.status, late.message) == (
        "FAIL",
        "still running after 0.5 s: is it too slow, or is there an endless loop?",
    )
    crashed = judged(warm, course, tmp_path, "os._exit(3)")
    assert crashed.message == "the file ended the grading process: it left with code 3, as by os._exit"
    assert judged(warm, course, tmp_path).status == "PASS"
    assert warm._process is process


def test_a_child_that_ends_the_warm_process_costs_only_its_own_points(
    warm: Warm, course: Course, tmp_path: Path
) -> None:
    killed = judged(warm, course, tmp_path, "os.kill(os.getppid(), 9)\nimport time\ntime.sleep(100)")
    assert (killed.status, killed.points) == ("ERROR", 0)
    assert judged(warm, course, tmp_path).status == "PASS"


def test_a_child_takes_no_more_memory_and_imports_nothing_of_the_engine_before(
    warm: Warm, course: Course, tmp_path: Path
) -> None:
    """Data in memory, which the limit counts, before the file of the student is read: cold and warm."""
    told = (
        "size = next(line for line in open('/proc/self/status') if 'VmData' in line)\n"
        "engine = [name for name in sys.modules if name.startswith(('flashlite.engine', 'flashlite.bench.co'))]\n"
        "import torch\nraise ValueError(f'{size.split()[1]} {engine} {os.times().user < 5}')"
    )
    found = judged(warm, course, tmp_path, told).message.splitlines()[-1]
    size, engine, young = found.removeprefix("ValueError: ").split()
    assert int(size) < 400_000, "kB"
    assert (engine, young) == ("[]", "True")


def test_a_library_is_imported_once_a_child_has_needed_it(warm: Warm, course: Course, tmp_path: Path) -> None:
    """And no sooner: an exercise that needs NumPy alone doesn't wait for torch."""
    warm.close()
    warm._folder = tempfile.TemporaryDirectory()
    told = "raise ValueError('torch' in sys.modules)"
    found = [judged(warm, course, tmp_path, code).message for code in (told, "import torch", told)]
    assert [text.rpartition(" ")[2] for text in found] == ["False", "", "True"]


def test_the_grading_of_many_is_that_of_each(course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tasks than jobs go through warm processes, as many as jobs, which are gone afterwards."""
    begun: list[Warm] = []
    monkeypatch.setattr(grading, "Warm", lambda *args, **kwargs: begun.append(Warm(*args, **kwargs)) or begun[-1])
    exercises = [course.find(identifier) for identifier in ("7.1", "7.2", "0.3")]
    found = grade(course, ROOT / "solutions", exercises, seed=3, jobs=2)
    assert [(g.id, g.status, g.points) for g in found] == [(e.id, "PASS", e.points) for e in exercises]
    assert len(begun) == 2
    assert all(process._process is None and not os.path.exists(process._folder.name) for process in begun)
    grade(course, ROOT / "solutions", exercises[:2], seed=3, jobs=2)
    assert len(begun) == 2


@pytest.mark.parametrize(("line", "number"), [("12\n", 12), ("-9\n", -9), ("", None), ("12", None), ("x\n", None)])
def test_an_answer_is_a_number_or_none(line: str, number: int | None) -> None:
    assert _number(line) == number
