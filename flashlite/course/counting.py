"""How often the functions of exercises are called: counted where they are plugged in, added up over processes.

While somebody counts, $FLASHLITE_CALLS names a folder. Each process that was started with exercises plugged in leaves
its counts there when it ends.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "FLASHLITE_CALLS"
_lock = threading.Lock()  # reads are planned by more than one thread
_here: Counter[str] = Counter()  # calls in this process, by the exercise's id


def count(module: ModuleType, exercises: Mapping[str, str]) -> None:
    """Have the calls of a module's functions counted. exercises: their ids, by the function's qualified name."""
    for qualname, exercise in exercises.items():
        *owners, name = qualname.split(".")
        owner: object = module
        for part in owners:
            owner = getattr(owner, part, None)
        if callable(function := getattr(owner, name, None)):  # a file may lack it: then whoever needs it says so
            setattr(owner, name, counting(function, exercise))


def counting(function: Callable[..., Any], exercise: str) -> Callable[..., Any]:
    """The same function, each call of which is counted."""

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        with _lock:
            _here[exercise] += 1
        return function(*args, **kwargs)

    return counted


def leave_counts() -> None:
    """Have this process leave its counts when it ends, if somebody counts."""
    if folder := os.environ.get(FOLDER):
        atexit.register(_write, Path(folder) / f"{os.getpid()}.json")


def _write(path: Path) -> None:
    if path.parent.is_dir():  # whoever counted may have ended already
        path.write_text(json.dumps(_here), encoding="utf-8")


class Calls:
    """The calls of exercises from now on, in this process and in those that it starts, until `end`."""

    def __init__(self) -> None:
        _here.clear()
        self._folder = tempfile.TemporaryDirectory(prefix="flashlite-calls-")
        os.environ[FOLDER] = self._folder.name

    def total(self) -> Counter[str]:
        """How often each exercise was called so far, by its id; processes that still run are left out."""
        files = sorted(Path(self._folder.name).glob("*.json"))
        return sum((Counter(json.loads(file.read_text(encoding="utf-8"))) for file in files), Counter(_here))

    def end(self) -> None:
        """Count no longer."""
        os.environ.pop(FOLDER, None)
        self._folder.cleanup()


def table(functions: Mapping[str, str], calls: Mapping[str, int]) -> list[str]:
    """Lines that say how often each exercise was called. functions: their names, by the exercise's id."""
    called = [exercise for exercise in functions if calls.get(exercise)]
    width = max((len(name) for name in functions.values()), default=0)
    lines = [f"exercise  {'function':{width}}  calls"] if called else []
    lines += [f"{exercise:8}  {functions[exercise]:{width}}  {calls[exercise]:5}" for exercise in called]
    missing = [exercise for exercise in functions if exercise not in called]
    return lines + ([f"not called here: {', '.join(missing)}"] if missing else [])
