"""An entry in a process of its own, within limits, asked by the referee as if it were here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import flashlite
from flashlite.contest import wire
from flashlite.course.limits import Limits, environment
from flashlite.engine.policies.rules import Change, PolicyKind, PolicyLike, Token
from flashlite.errors import FlashliteError

TIME_LIMIT = 120.0  # seconds for one entry, all traces together


class Fault(FlashliteError):
    """An entry failed, or broke a rule: it gets no score. The text says what happened."""


class Remote:
    """The process of one entry. file: the entry's; process: it; limits: what it may use."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        self._process, self._limits = process, limits
        self.late = False  # whether the time limit ended it

    def ask(self, facts: dict[str, Any], **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of its answer. Raises Fault if it fails, or has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            wire.send(self._process.stdin, facts, **arrays)  # type: ignore[arg-type]
            answer, found = wire.receive(self._process.stdout)  # type: ignore[arg-type]
        except (OSError, wire.Broken):
            raise Fault(self._end()) from None
        if "error" in answer:
            raise Fault(f"{answer['error']}"[:500])
        return found

    def policies(self, past: Sequence[Path]) -> PolicyKind:
        """Makes the entry's policies. past: the traces that they may learn from."""
        names = [str(path.resolve()) for path in past]

        def make(layer: int, neurons: int, capacity: int) -> PolicyLike:
            self.ask({"act": "make", "layer": layer, "neurons": neurons, "capacity": capacity, "past": names})
            return _Policy(self, layer)

        return make

    def order(self, layer: int, neurons: int, past: Sequence[Path]) -> np.ndarray:
        """The entry's order of a layer, not checked yet. past: the traces that it may learn from."""
        names = [str(path.resolve()) for path in past]
        found = self.ask({"act": "order", "layer": layer, "neurons": neurons, "past": names})
        return found.get("order", np.zeros(0, np.int64))

    def _end(self) -> str:
        """Why it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.poll()
        if self.late:
            return f"still running after {self._limits.seconds:g} s: is it too slow, or is there an endless loop?"
        if code is None:
            return "it wrote over its answers"
        return self._limits.ended(code) or f"it ended its process, with code {code}, as by os._exit or a crash"


class _Policy:
    """One layer's policy in the other process."""

    def __init__(self, remote: Remote, layer: int) -> None:
        self._remote, self._layer = remote, layer

    def step(self, token: Token) -> Change:
        """See PolicyLike. Raises Fault."""
        answer = self._remote.ask({"act": "step", "layer": self._layer}, needed=token.needed, scores=token.scores())
        return Change(answer.get("drop", ()), answer.get("load", ()))


@contextlib.contextmanager
def running(file: Path, time_limit: float = TIME_LIMIT) -> Iterator[Remote]:
    """The process of an entry, which ends with the block, and with it all that it has started."""
    limits = replace(Limits(), seconds=time_limit)
    modules = str(Path(str(flashlite.__file__)).resolve().parents[1])
    command = [sys.executable, "-m", "flashlite.contest.child", str(file.resolve()), limits.to_json()]
    with tempfile.TemporaryDirectory(prefix="flashlite-contest-", ignore_cleanup_errors=True) as scratch:
        process = subprocess.Popen(
            command, cwd=scratch, env=environment(os.environ, modules, scratch), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        remote = Remote(process, limits)
        timer = threading.Timer(time_limit, _stop, [remote, process])
        timer.start()
        try:
            yield remote
        finally:
            timer.cancel()
            _kill(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _stop(remote: Remote, process: subprocess.Popen[bytes]) -> None:
    remote.late = True
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it left running."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing runs any more
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
