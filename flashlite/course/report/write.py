"""Writing a report: the template filled, as Markdown with its pictures beside it, and as one page of HTML."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from flashlite.bench.result import Result
from flashlite.course.classroom.state import write_text
from flashlite.course.manifest import Course
from flashlite.course.report import known
from flashlite.course.report.page import page
from flashlite.course.report.template import fill, with_answers
from flashlite.errors import FlashliteError, StoreError, one_line
from flashlite.storage.atomic import new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "chapters/report.md"
FIGURES: dict[str, tuple[str, Callable[[ModuleType, Result], Figure]]] = {
    "ladder_figure": ("One token's time by stage", lambda plots, result: plots.ladder(result)),
    "drive_figure": ("What the drive can do", lambda plots, result: plots.drive_curve(result.curve)),
}


def write_report(course: Course, folder: Path, benchmark: Path | None = None) -> list[str]:
    """Write report.md, report.html and the pictures into a folder; answers in an earlier report.md there are kept.

    benchmark: a result of `bench --json`; as `last_benchmark` finds it if not given

    Returns the lines of the report that say what is missing. Raises FlashliteError if the template, the benchmark or an
    earlier report can't be read, or if something can't be written.
    """
    result = known.last_benchmark(course, benchmark)
    figures, pictures = draw(result)
    values = {
        "machine": known.machine(result),
        "ladder": known.ladder(result),
        "calls": known.calls(course, result),
        "grades": known.grades(course),
        "contests": known.contests(course),
        **figures,
    }
    text = fill(_read(course.root / TEMPLATE), values)
    if (folder / "report.md").exists():
        text = with_answers(text, _read(folder / "report.md"))
    for name, picture in pictures.items():
        with one_line(folder / name, StoreError, "cannot be written"):
            folder.mkdir(parents=True, exist_ok=True)
            with new_file(folder / name) as unfinished:
                unfinished.write_bytes(picture)
    write_text(folder / "report.md", text)
    write_text(folder / "report.html", page(text, _title(text), pictures))
    return sorted({line for line in text.splitlines() if line.startswith(known.MISSING)})


def draw(result: Result | None) -> tuple[dict[str, str], dict[str, bytes]]:
    """The figures of a benchmark: what stands for each in the template, and each picture by its file's name."""
    if result is None:
        return dict.fromkeys(FIGURES, known.NO_BENCH), {}
    try:
        from flashlite import plots
    except ModuleNotFoundError:
        return dict.fromkeys(FIGURES, f"{known.MISSING} figures need matplotlib: `pip install matplotlib`."), {}
    shown, pictures = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (title, figure) in FIGURES.items():
            file = f"{name.removesuffix('_figure')}.png"
            pictures[file] = plots.save(figure(plots, result), Path(scratch) / file).read_bytes()
            shown[name] = f"![{title}]({file})"
    return shown, pictures


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise FlashliteError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _title(text: str) -> str:
    """A report's first heading."""
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")), "Report")
