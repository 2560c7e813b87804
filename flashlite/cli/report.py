"""The command that writes a student's report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flashlite.cli.grades import screen, shown
from flashlite.course.manifest import find_course


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command("report")(report)


def report(
    out: Annotated[Path | None, typer.Option(help="the folder to write to; report/ of your clone if not given")] = None,
    bench: Annotated[
        Path | None, typer.Option(help="a result of bench --json; the newest in .flashlite/ if not given")
    ] = None,
) -> None:
    """Fill the report with your own figures, plots and grades, in Markdown and HTML. Answer its questions in report.md,
    and run this again: your answers are kept."""
    course = find_course()
    from flashlite.course.report.write import write_report

    folder = out or course.root / "report"
    missing = write_report(course, folder, bench)
    screen.print(escape("\n".join([f"{shown(folder / 'report.md')}, {shown(folder / 'report.html')}", *missing])))
