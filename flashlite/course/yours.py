"""A chapter's "run yours" cell: the engine on a student's exercises, and how often each of them was called.

course.toml says by which command each exercise runs. What `bench` would measure is measured beside the engine's own
code; the other commands run as they are.
"""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from IPython.display import Markdown

from flashlite.arguments import is_store
from flashlite.bench.compare import beside_reference
from flashlite.bench.tables import gain_markdown
from flashlite.course import counting, plug
from flashlite.course.checks import short
from flashlite.course.manifest import Course, Exercise, find_course
from flashlite.errors import FlashliteError
from flashlite.storage.find import open_model
from flashlite.storage.store import Store

MINE = "mine"  # the store that a chapter's `pack` writes
Show = Callable[[Callable[..., Any]], object]


def run_yours(
    store: Store, number: int, shown: Mapping[str, Show] | None = None, source: str = "mine"
) -> Markdown | None:
    """Run the engine on your exercises of a chapter, beside its own code, and count how often each was called.

    store: the model
    number: the chapter's
    shown: by exercise, what to show of its function: called with yours, and with the engine's
    source: mine, or solutions

    Says so, and measures nothing, if you haven't begun the chapter or if a result would be wrong.
    """
    course, slot = find_course(), f"ex{number:02d}"
    plugs = plug.choose(course, f"ref,{slot}={source}")
    begun = {name: p for name, p in plugs.items() if source != "mine" or course.is_edited(Path(p.file))}
    if not begun:
        print(_not_begun(course, slot, number))
        return None
    print("\n".join(plug.describe(course, begun)))
    exercises = [e for e in course.exercises if e.module in begun and e.slot == slot]
    calls = counting.Calls()
    try:
        with tempfile.TemporaryDirectory(prefix="yours-", dir=_place(course)) as folder:
            tables = _run(store, exercises, begun, Path(folder), f"--impl ref,{slot}={source}")
        for exercise in (e for e in exercises if e.id in (shown or {})):
            print(_beside(exercise, begun, (shown or {})[exercise.id]))
        functions, total = plug.functions_of(begun), calls.total()
    except FlashliteError as error:
        print(f"flashlite: {error}", file=sys.stderr)
        return None
    finally:
        calls.end()
    rows = [f"| {exercise} | `{name}` | {total[exercise]} |" for exercise, name in functions.items()]
    return Markdown("\n\n".join([*tables, "\n".join(["| exercise | your function | calls |", "|---|---|---|", *rows])]))


def _not_begun(course: Course, slot: str, number: int) -> str:
    files = sorted(name for name in course.files if name.startswith(slot))
    return (
        f"Nothing of yours to run yet: {', '.join(f'exercises/{name}' for name in files)} "
        f"{'is' if len(files) == 1 else 'are'} untouched.\n"
        f"Solve them until `flashlite grade {number}` passes, then run this cell again."
    )


def _place(course: Course) -> Path:
    """Where a cell may write: never among the engine's own stores."""
    folder = course.root / ".flashlite"
    folder.mkdir(exist_ok=True)
    return folder


def _run(
    store: Store, exercises: Sequence[Exercise], begun: dict[str, plug.Plug], folder: Path, impl: str
) -> list[str]:
    """Run the exercises' commands in a folder, one of `bench` last. Returns what it measured, in Markdown."""
    commands = dict.fromkeys(e.run for e in exercises if e.run)
    for command in (c for c in commands if not c.startswith("bench ")):
        print(f"$ flashlite {command.format(model='MODEL', store='STORE', text='FILES')} {impl}")
        _call(plug.command(begun, "flashlite") + _arguments(command, store), folder)
    tables = []
    for command in (c for c in commands if c.startswith("bench ")):
        (model, options), worker = _measured(command, store), "flashlite.bench.measure_one"
        rows = beside_reference(
            model, int(options["--stage"]), plug.command(begun, worker), window=options.get("--window", 5),
            predictor=options.get("--predictor", "trained"), budget=options.get("--dram-budget", "50%"),
            theirs=folder / MINE if is_store(folder / MINE) else None,
        )  # fmt: skip
        tables.append(gain_markdown(rows, names=("the engine's code", "your code")))
    return tables


def _measured(command: str, store: Store) -> tuple[Store, dict[str, str]]:
    """The model that a command of `bench` names, from the course's folder, or else `store`; and the options."""
    words = shlex.split(command)[1:]
    named = words.pop(0) if len(words) % 2 else None
    options = dict(zip(words[::2], words[1::2], strict=True))
    if named is None:
        return store, options
    path = find_course().root / named
    return open_model(path if path.exists() else named), options


def _arguments(command: str, store: Store) -> list[str]:
    """A command's words. Its text is a file that every Python has; what it packs can't be packed already."""
    model = os.environ.get("FLASHLITE_MODEL", "opt-mini")
    model = "opt-mini" if is_store(model) else os.path.abspath(model) if os.path.exists(model) else model
    places = {"model": model, "store": str(store.path.absolute()), "text": typing.__file__}
    words = [word.format(**places) for word in shlex.split(command)]
    return [*words, "--json", "result.json"] if words[0] == "estimate" else words  # or JSON took stdout from its words


def _call(command: list[str], folder: Path) -> None:
    """Run a command in a folder that is soon gone, and print what it says, but for where its plot is. Raises
    FlashliteError if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    print("\n".join(line for line in done.stdout.splitlines() if not line.startswith("plot: ")))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise FlashliteError(last.removeprefix("flashlite: "))


def _beside(exercise: Exercise, begun: dict[str, plug.Plug], show: Show) -> str:
    """What your function gives and what the engine's gives. Raises FlashliteError if yours fails."""
    name = exercise.qualname
    try:
        yours = short(show(getattr(plug.load(begun[exercise.module], exercise.module), name)))
    except Exception as error:
        raise FlashliteError(f"{plug.own_line(error)}{type(error).__name__}: {error}") from None
    ours = short(show(getattr(importlib.import_module(exercise.module), name)))
    return f"{exercise.id} {name}: yours {yours}, the engine's {ours}"
