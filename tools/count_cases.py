"""Count what the tests try, and write it into the tables of tests/README.md: python tools/count_cases.py [--check].

A row names its tests in code: `test_a.py` for all of a file, `test_a.py::test_…_b` for some of it, or `…_b…` for some
of the file named last; … stands for anything. A case is one test as pytest collects it, or one example that hypothesis
makes up.

--check    change nothing; fail if the tables say something else
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "tests/README.md"


class Collector:
    """A plugin of pytest that keeps what was collected."""

    items: tuple[pytest.Item, ...] = ()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = tuple(session.items)


def collect() -> tuple[pytest.Item, ...]:
    """All tests of this repository. Exits if they can't be collected."""
    collector, said = Collector(), io.StringIO()
    with contextlib.redirect_stdout(said):
        code = pytest.main(
            ["--collect-only", "-m", "", "-p", "no:cacheprovider", str(ROOT / "tests")], plugins=[collector]
        )
    if code:
        sys.exit(said.getvalue())
    return collector.items


def cases(items: Iterable[pytest.Item]) -> Counter[tuple[str, str]]:
    """How many cases each test has, by the name of its file and its own."""
    found: Counter[tuple[str, str]] = Counter()
    for item in items:
        function = getattr(item, "function", None)
        settings = getattr(function, "_hypothesis_internal_use_settings", None)
        found[item.path.name, getattr(item, "originalname", item.name)] += settings.max_examples if settings else 1
    return found


def count(cell: str, known: Mapping[tuple[str, str], int]) -> int:
    """The cases of the tests that a cell names. Raises ValueError if one of its names is of no test."""
    wanted: dict[str, list[str]] = {}  # for each file, patterns of names; none means all
    for name in re.findall(r"`([^`]+)`", cell):
        file, colons, pattern = name.rpartition("::")
        if name.endswith(".py"):
            wanted[name] = []
        elif colons:
            wanted.setdefault(file, []).append(pattern)
        else:
            wanted[list(wanted)[-1]].append(name)
    return sum(_matching(file, pattern, known) for file, patterns in wanted.items() for pattern in patterns or ["…"])


def _matching(file: str, pattern: str, known: Mapping[tuple[str, str], int]) -> int:
    alike = pattern.replace("…", "*")
    found = [n for (of, name), n in known.items() if of == file and fnmatch.fnmatchcase(name, alike)]
    if not found:
        raise ValueError(f"tests/README.md names {file}::{pattern}, and there is no such test")
    return sum(found)


def updated(text: str, known: Mapping[tuple[str, str], int]) -> str:
    """The tables with the numbers of cases as they are. Raises ValueError if a row names no test."""
    lines = []
    for line in text.splitlines():
        cells = line.split(" | ")
        if len(cells) == 3 and "`test_" in cells[1]:
            line = " | ".join([*cells[:2], f"{count(cells[1], known)} |"])
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    before = README.read_text(encoding="utf-8")
    try:
        after = updated(before, cases(collect()))
    except ValueError as error:
        sys.exit(str(error))
    if "--check" in sys.argv:
        sys.exit(0 if before == after else "tests/README.md counts other cases: run python tools/count_cases.py")
    README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
