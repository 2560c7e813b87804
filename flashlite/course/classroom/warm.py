"""Processes that begin warm: `python -m flashlite.course.classroom.warm` forks a child for each exercise that it is to
grade, and imports torch and transformers itself once a child has needed them, so that the next ones have them already.

It imports nothing of the engine and nothing of a student's: a child has what it would have imported itself, counts its
own processor time from 0 and its memory with that of the libraries, and is limited before the student's file is read.
A task is a line of JSON on stdin; the answers are two lines on stdout, the child's number and how it ended.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flashlite.course.classroom.cold import kill_group
from flashlite.course.limits import environment
from flashlite.course.plug import Plug, install

LIBRARIES = ("torch", "transformers.modeling_utils")  # which take a second or two to import


class Warm:
    """A warm process, which begins when it is first needed. One thread at a time may use it. root: of the course."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = tempfile.TemporaryDirectory(prefix="flashlite-warm-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[str] | None = None
        self._child: int | None = None

    def run(
        self, plugs: Mapping[str, Plug], arguments: Sequence[str], folder: Path, variables: Mapping[str, str],
        seconds: float,
    ) -> int | None:  # fmt: skip
        """`cold.Run` by a child of the warm process; 1 if a student's code ended that too."""
        process = self._begun()
        task = {"plugs": {name: asdict(plug) for name, plug in plugs.items()}, "arguments": list(arguments)}
        self._child = _number(self._ask(process, task | {"folder": str(folder), "variables": dict(variables)}))
        ended, late = None, False
        if self._child is not None and process.stdout is not None:
            late = not select.select([process.stdout], [], [], seconds)[0]
            if late:
                kill_group(self._child)
            ended = _number(process.stdout.readline())
        if ended is None:
            self._end()  # the next task begins another
        self._child = None
        return None if late else 1 if ended is None else ended

    def _begun(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flashlite.course.classroom.warm"], cwd=self._folder.name,
                env=environment(os.environ, str(self._root), self._folder.name), stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
            )  # fmt: skip
        return self._process

    def _ask(self, process: subprocess.Popen[str], task: dict[str, Any]) -> str:
        """The first line of the answer; empty if the process has ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
        return process.stdout.readline()

    def _end(self) -> None:
        if self._child is not None:
            kill_group(self._child)
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def close(self) -> None:
        """End the process, with what it is grading."""
        self._end()
        self._folder.cleanup()


def _number(line: str) -> int | None:
    """A line of an answer; None if it is none, as where the process has ended."""
    return int(line) if re.fullmatch(r"-?\d{1,9}\n", line) else None


def main() -> None:
    """Fork a child for each task, as the text at the top says."""
    importlib.import_module("flashlite.course.run_tests")
    needed = Path.cwd()
    while line := sys.stdin.readline():
        gc.freeze()  # else a child's first collection would copy all that it shares with this process
        child = os.fork()
        if child == 0:
            _become(json.loads(line), needed)
        print(child, flush=True)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # its number stays its own until it is waited for
        kill_group(child)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        for name in LIBRARIES:
            if (needed / name).exists():
                importlib.import_module(name)


def _become(task: dict[str, Any], needed: Path) -> None:
    """Be the process that grades one exercise, and end with it. needed: the folder to note in which libraries were
    imported."""
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        os.chdir(task["folder"])
        os.environ.clear()
        os.environ.update(task["variables"])
        tempfile.tempdir = None  # it may have been asked for before
        sys.path[0] = task["folder"]
        install({name: Plug(**plug) for name, plug in task["plugs"].items()})
        from flashlite.course import run_tests

        sys.argv = ["run_tests", *task["arguments"]]
        run_tests.main()
        for name in set(LIBRARIES) & sys.modules.keys():
            (needed / name).touch()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
