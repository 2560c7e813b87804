"""What a student's code may use while it is graded: each limit holds, is named, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, copy_course

from flashlite.course import grade as grading
from flashlite.course import limits as limits_module
from flashlite.course.classroom.cold import Run, run_cold
from flashlite.course.classroom.warm import Warm
from flashlite.course.grade import Grade, grade, grade_one
from flashlite.course.limits import Limits, environment, missing
from flashlite.course.manifest import Course

posix_only = pytest.mark.skipif(limits_module.resource is None, reason="this system has no limits on resources")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")


def run_limited(limits: Limits, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code under limits in a process of its own; what an exception tells of them is printed."""
    script = (
        "import json, sys\nfrom flashlite.course.limits import Limits\nlimits = Limits(**json.loads(sys.argv[1]))\n"
        f"limits.apply()\ntry:\n    exec({code!r})\nexcept Exception as error:\n    print(limits.exceeded(error))\n"
    )
    command = [sys.executable, "-c", script, limits.to_json()]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=60)


@linux_only
def test_memory_is_limited(tmp_path: Path) -> None:
    limits = Limits(memory=300_000_000)
    assert run_limited(limits, "bytearray(100_000_000); print('fits')", tmp_path).stdout == "fits\n"
    assert run_limited(limits, "bytearray(500_000_000)", tmp_path).stdout == "it used more than 0.3 GB of memory\n"


@linux_only
def test_a_process_whose_memory_is_full_has_some_left_to_say_so(tmp_path: Path) -> None:
    fill = "kept = []\ntry:\n    while True:\n        kept.append(bytearray(10**6))\nexcept MemoryError as error:\n"
    report = "    limits.exceeded(error)\n    print(len(bytearray(10**8)))"
    assert run_limited(Limits(memory=300_000_000), fill + report, tmp_path).stdout == "100000000\n"


@posix_only
def test_a_files_size_is_limited(tmp_path: Path) -> None:
    limits = Limits(file=1_000_000)
    assert run_limited(limits, "open('a', 'wb').write(bytes(900_000)); print('fits')", tmp_path).stdout == "fits\n"
    written = run_limited(
        limits, "open('b', 'wb', 0).write(bytes(1_000_000)); open('b', 'ab', 0).write(b'x')", tmp_path
    )
    assert written.stdout == "it wrote a file larger than 1 MB\n"
    assert (tmp_path / "b").stat().st_size == 1_000_000


@posix_only
def test_processor_time_is_limited(tmp_path: Path) -> None:
    limits = Limits(seconds=0.5)
    assert limits.processor == 1
    ended = run_limited(limits, "while True: pass", tmp_path).returncode
    assert ended == -signal.SIGXCPU
    assert limits.ended(ended) == "it used more than 1 s of processor time"
    stubborn = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run_limited(limits, stubborn, tmp_path).returncode == -signal.SIGKILL


@posix_only
def test_no_core_is_dumped_and_limits_only_ever_fall(tmp_path: Path) -> None:
    code = (
        "import resource as r\nprint(r.getrlimit(r.RLIMIT_CORE), r.getrlimit(r.RLIMIT_FSIZE))\n"
        "Limits(file=2_000_000).apply()\nprint(r.getrlimit(r.RLIMIT_FSIZE))"
    )
    assert run_limited(Limits(file=1000), code, tmp_path).stdout == "(0, 0) (1000, 1000)\n(1000, 1000)\n"


def test_other_errors_and_ends_tell_of_no_limit() -> None:
    limits = Limits()
    assert [limits.exceeded(error) for error in (ValueError("x"), OSError(2, "x"), RuntimeError("x"))] == [None] * 3
    assert [limits.ended(code) for code in (0, 1, -11, -9)] == [None] * 4


def test_where_a_system_has_no_limits_a_line_says_so(
    course: Course, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits_module, "resource", None)
    Limits().apply()
    grade(course, ROOT / "solutions", [], seed=0)
    assert caplog.messages == [f"flashlite: {missing()}"]
    assert "without limits on memory, files and processor time" in caplog.text


def test_where_memory_alone_is_unlimited_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "without a limit on memory" in (missing() or "")


def test_only_what_python_needs_is_inherited() -> None:
    inherited = {
        "PATH": "/bin", "SECRET_TOKEN": "s", "AWS_SECRET_ACCESS_KEY": "s", "HOME": "/home/me", "LANG": "C.UTF-8",
        "LC_ALL": "C", "OMP_NUM_THREADS": "3", "PYTHONPATH": f"relative{os.pathsep}", "PYTHONSTARTUP": "x",
        "VIRTUAL_ENV": "/v", "SSH_AUTH_SOCK": "x", "http_proxy": "x",
    }  # fmt: skip
    found = environment(inherited, "/course", "/scratch")
    assert set(found) == {
        "PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "HOME",
        "TMPDIR", "TEMP", "TMP", "USERPROFILE",
    }  # fmt: skip
    assert found["PYTHONPATH"] == os.pathsep.join(["/course", os.path.abspath("relative")])
    assert {found[name] for name in ("HOME", "TMPDIR", "TEMP", "TMP", "USERPROFILE")} == {"/scratch"}
    assert environment({}, "/course", "/scratch")["OMP_NUM_THREADS"] == "1"


# Through the grading itself: each of these stands at the top of a solved exercise file

TELL = "raise ValueError(repr({}))"
WRITE_RESULT = "import os, sys\nopen(sys.argv[4], 'w').write({!r})\nos._exit(0)"
STUDENTS = {
    "torch": "import torch\ntorch.zeros(10**10)",
    "list": "grown = []\nwhile True:\n    grown.append(bytearray(10**8))",
    "file": "with open('large', 'wb', 0) as file:\n    while True:\n        file.write(bytes(10**7))",
    "variables": "import os\n" + TELL.format("sorted(os.environ)"),
    "folders": "import os, tempfile\n" + TELL.format("(os.getcwd(), os.path.expanduser('~'), tempfile.gettempdir())"),
    "child": "import subprocess\n" + TELL.format("subprocess.Popen(['sleep', '1000']).pid"),
    "litter": "import os\nfrom pathlib import Path\nfor place in (Path(), Path.home(), Path(os.environ['TMPDIR'])):\n"
              "    (place / 'litter').mkdir(exist_ok=True)\n    (place / 'litter/closed').touch()\n"
              "os.chmod('litter', 0)",
    "garbage": WRITE_RESULT.format("[" * 200_000),
    "odd": WRITE_RESULT.format('[{"status": "BEST"}]'),
    "endless": WRITE_RESULT.format('[{"status": "PASS", "points": 1e999, "message": ""}]'),
    "forged": WRITE_RESULT.format('[{"status": "PASS", "points": 999, "message": ""}]'),
}  # fmt: skip
MARK = "class Window:"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A copy of the course, so that what is written into it shows."""
    return copy_course(tmp_path_factory.mktemp("course"))


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module", params=["cold", pytest.param("warm", marks=linux_only)])
def graded(
    request: pytest.FixtureRequest, clone: Course, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Grade]]:
    """Every student's file graded, two at a time or by one warm process, with a secret in this process's variables."""
    warm = Warm(clone.root) if request.param == "warm" else None
    run: Run = warm.run if warm else run_cold
    solved = (ROOT / "solutions/ex03_window.py").read_text()
    assert MARK in solved

    def judge(name: str) -> Grade:
        folder = tmp_path_factory.mktemp(name)
        (folder / "ex03_window.py").write_text(solved.replace(MARK, f"{STUDENTS[name]}\n\n\n{MARK}"))
        return grade_one(clone, folder, clone.find("3.2"), seed=1, run=run)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1 if warm else 2) as pool:
        patch.setenv("SECRET_TOKEN", "secret")
        patch.setattr(grading, "LIMITS", Limits(file=25 * 10**6))
        before = contents(clone.root)
        grades = dict(zip(STUDENTS, pool.map(judge, STUDENTS), strict=True))
        assert contents(clone.root) == before, "grading must write nothing into the course"
    yield grades
    if warm:
        warm.close()


@linux_only
@pytest.mark.parametrize("name", ["torch", "list"])
def test_too_much_memory_is_named_with_the_students_line(name: str, graded: dict[str, Grade]) -> None:
    assert (graded[name].status, graded[name].points) == ("FAIL", 0)
    assert graded[name].message.startswith("ex03_window.py:")
    assert graded[name].message.endswith("it used more than 2 GB of memory")


@posix_only
def test_too_large_a_file_is_named_with_the_students_line(graded: dict[str, Grade]) -> None:
    assert (graded["file"].status, graded["file"].points) == ("FAIL", 0)
    assert graded["file"].message.startswith("ex03_window.py:")
    assert graded["file"].message.endswith("it wrote a file larger than 25 MB")


@posix_only
def test_too_much_processor_time_is_named(course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock's limit is far, as it is for threads that keep all cores busy."""
    monkeypatch.setattr(grading, "LIMITS", Limits(cores=0.05))
    solved = (ROOT / "solutions/ex03_window.py").read_text()
    (tmp_path / "ex03_window.py").write_text(solved.replace(MARK, f"while True:\n    pass\n\n\n{MARK}"))
    found = grade_one(course, tmp_path, course.find("3.2"), seed=1)
    assert (found.status, found.points) == ("FAIL", 0)
    assert found.message == "it used more than 3 s of processor time"


def test_a_students_code_sees_no_secrets(graded: dict[str, Grade]) -> None:
    assert "'PATH'" in graded["variables"].message
    assert "SECRET_TOKEN" not in graded["variables"].message


def test_a_students_code_has_one_folder_of_its_own_which_is_gone_afterwards(graded: dict[str, Grade]) -> None:
    folders = set(eval(graded["folders"].message.partition("ValueError: ")[2]))
    assert len(folders) == 1
    folder = Path(folders.pop())
    assert not folder.is_relative_to(ROOT)
    assert not folder.exists()


def test_what_a_students_code_leaves_running_ends_with_it(graded: dict[str, Grade]) -> None:
    process = int(graded["child"].message.partition("ValueError: ")[2])
    state = Path(f"/proc/{process}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_litter_is_no_error(graded: dict[str, Grade]) -> None:
    assert graded["litter"].status == "PASS"


@pytest.mark.parametrize("name", ["garbage", "odd", "endless"])
def test_a_result_written_over_is_an_error_and_no_crash(name: str, graded: dict[str, Grade]) -> None:
    assert (graded[name].status, graded[name].points) == ("ERROR", 0)
    assert graded[name].message == "the file wrote over the result of its grading"


def test_a_forged_result_is_worth_no_more_than_the_exercise(graded: dict[str, Grade], course: Course) -> None:
    """It can be forged, which CONTRIBUTING.md says, but only up to full points."""
    assert graded["forged"].points == course.find("3.2").points


def test_a_relative_path_to_flashlite_still_leads_there(
    course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.path.relpath(ROOT))
    solved = (ROOT / "solutions/ex04_bundle.py").read_text()
    (tmp_path / "ex04_bundle.py").write_text(solved)
    assert grade_one(course, tmp_path, course.find("4.1"), seed=1).status == "PASS"
