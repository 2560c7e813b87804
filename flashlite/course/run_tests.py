"""One exercise's tests in a process of their own: `python -m flashlite.course.run_tests ID TESTS SEED RESULT LIMITS`.

grade.py runs it with the student's file plugged in, and reads the JSON that it leaves in the file RESULT. LIMITS are in
force before anything of the student's is imported.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from flashlite.course.checks import SEED, Wrong
from flashlite.course.classroom.beside import hidden
from flashlite.course.limits import Limits
from flashlite.course.plug import own_line
from flashlite.course.uninitialized import spoil_empty_memory
from flashlite.errors import FlashliteError


class Collector:
    """A pytest plugin: keeps the tests of one exercise and notes how each ended."""

    def __init__(self, exercise: str, limits: Limits) -> None:
        self.exercise, self.limits = exercise, limits
        self.results: list[dict[str, Any]] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep this exercise's tests alone."""
        items[:] = [item for item in items if self._mark(item)]

    def pytest_collection_finish(self) -> None:
        """Whatever the tests and the exercise file import is imported by now."""
        spoil_empty_memory(int(os.environ[SEED]))

    def _mark(self, item: pytest.Item) -> pytest.Mark | None:
        """The mark that says what a test is worth, if it is one of this exercise's."""
        mark = item.get_closest_marker("points")
        return mark if mark and mark.args[0] == self.exercise else None

    def _points(self, item: pytest.Item) -> int:
        mark = self._mark(item)
        return mark.args[1] if mark else 0

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Note the end of a test, or of its set-up if that failed."""
        if call.when == "call" or (call.when == "setup" and call.excinfo):
            error = call.excinfo.value if call.excinfo else None
            self.results.append({"points": self._points(item), **outcome(error, self.limits)})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a test module that can't be imported, most often because the exercise file can't."""
        if report.failed:
            error = getattr(report, "error", None)
            self.results.append({"points": 0, **(error or {"status": "ERROR", "message": str(report.longrepr)[-300:]})})

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note what ended pytest itself: a file that calls sys.exit when it is imported."""
        self.results.append({"points": 0, **outcome(excinfo.value, self.limits)})

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Any:
        """Keep the exception behind a failed import, which pytest's report has only as text."""
        report = yield
        info = getattr(report, "call", None)
        if report.failed and info is not None and info.excinfo is not None:
            report.error = outcome(info.excinfo.value, self.limits)
        return report


def outcome(error: BaseException | None, limits: Limits) -> dict[str, str]:
    """What an exception says of an exercise: status PASS, TODO, FAIL or ERROR, and lines that say why."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__  # pytest wraps what an import raised
    if error is None:
        return {"status": "PASS", "message": ""}
    if isinstance(error, NotImplementedError) and "exercise" in str(error):
        return {"status": "TODO", "message": str(error)}
    if isinstance(error, Wrong):
        return {"status": "FAIL", "message": str(error)}
    if (limit := limits.exceeded(error)) is not None:
        return {"status": "FAIL", "message": _told(error, limit)}
    if isinstance(error, FlashliteError):
        return {"status": "ERROR", "message": _told(error, str(error))}
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return {"status": "ERROR", "message": _told(error, f"{type(error).__name__}: {first_line}")}


def _told(error: BaseException, what: str) -> str:
    """The student's line that an exception comes from, then what it says, and what explains it."""
    lines = [own_line(error).removesuffix("  → "), what, hidden(error)]
    return "\n".join(filter(None, lines))


def main() -> None:
    """Run the tests, as the text at the top says."""
    exercise, tests, seed, result, given = sys.argv[1:6]
    os.environ[SEED] = seed
    limits = Limits(**json.loads(given))
    limits.apply()
    collector = Collector(exercise, limits)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever else is installed here has no say in a grade
    options = ["-q", "--tb=no", "--noconftest", "-p", "no:cacheprovider", "-o", "pythonpath="]  # tools/ is not theirs
    try:
        pytest.main([tests, *options], plugins=[collector])
    except MemoryError as error:  # pytest had none left for its own report
        collector.results.append({"points": 0, **outcome(error, limits)})
    unfinished = Path(result).with_suffix(".writing")
    unfinished.write_text(json.dumps(collector.results))
    unfinished.replace(result)


if __name__ == "__main__":
    main()
