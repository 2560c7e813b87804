"""A process for each exercise that is graded, which imports all that it needs: on any system."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from flashlite.course.plug import Plug, command


class Run(Protocol):
    """Has a process grade one exercise: its exit code, or None if it took longer than `seconds`, which ends it.

    plugs: the files in the place of modules
    arguments: of run_tests.py
    folder, variables: of the process
    """

    def __call__(
        self, plugs: Mapping[str, Plug], arguments: Sequence[str], folder: Path, variables: Mapping[str, str],
        seconds: float,
    ) -> int | None:  # fmt: skip
        """Run it."""


def run_cold(
    plugs: Mapping[str, Plug], arguments: Sequence[str], folder: Path, variables: Mapping[str, str], seconds: float
) -> int | None:
    """`Run` by a process that is started for it; all that it leaves running ends with it."""
    process = subprocess.Popen(
        [*command(dict(plugs), "flashlite.course.run_tests"), *arguments], cwd=folder, env=variables,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        kill_group(process.pid)
    else:
        process.kill()
    process.wait()


def kill_group(group: int) -> None:
    """Kill a process that began a group, and what it left running."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing runs any more
        os.killpg(group, signal.SIGKILL)
