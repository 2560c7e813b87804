"""Running measurements, each in a fresh process and one after the other, with the time that the rest will take.

`flashlite.bench.measure_one` is what runs in such a process: it reads a task from a file, and prints its answer as one
JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from flashlite.bench.process.task import Answer, Task, write_task
from flashlite.engine.kernels.waiting import waiting_briefly
from flashlite.errors import FlashliteError, KilledError

WORKER = (sys.executable, "-m", "flashlite.bench.measure_one")


def run_worker(task: Task[Answer], command: Sequence[str] = WORKER) -> Answer:
    """Measure in a fresh process, which ends with this call, whatever ends it.

    Raises KilledError if the system kills the process, and FlashliteError with what it said if it fails.
    """
    path = Path(task.setup.folder) / "task.json"
    write_task(path, task)
    environment = waiting_briefly(os.environ) if task.streams else None
    with subprocess.Popen(
        [*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            stdout, stderr = process.communicate()
        finally:
            process.kill()
            process.wait()  # so that a control group that it is in can be removed
    answer = _last_object(stdout)
    if answer is None:
        ended = f"the measuring process ended with code {process.returncode}"
        if process.returncode == -signal.SIGKILL:
            raise KilledError(f"{ended}: the system killed it because memory ran out")
        raise FlashliteError(f"{ended}: {_last_words(stderr)}")
    if "out_of_memory" in answer:
        raise KilledError(f"the measuring process ended because the device's memory ran out: {answer['out_of_memory']}")
    if "error" in answer:
        raise FlashliteError(answer["error"])
    return task.read(answer)


def _last_object(stdout: str) -> dict[str, Any] | None:
    """The JSON object in the last line that a process printed, None if there is none."""
    with contextlib.suppress(IndexError, ValueError):
        answer = json.loads(stdout.splitlines()[-1])
        return answer if isinstance(answer, dict) else None
    return None


def _last_words(stderr: str) -> str:
    """The last line of a traceback, with the place in code outside of libraries that it comes from."""
    frames = [line for line in re.findall(r'File "(.+), in', stderr) if "site-packages" not in line]
    place = Path(frames[-1].replace('", line ', ":")).name + ": " if frames else ""
    return place + (stderr.strip().splitlines() or ["no message"])[-1]


@dataclass(frozen=True)
class Step:
    """A step of a benchmark. Steps of one kind take about as long; what: the words that announce it; act: its work."""

    kind: str
    what: str
    act: Callable[[], object]


def run_steps(steps: Sequence[Step], say: Callable[[str], None]) -> None:
    """Do one step after the other. say: takes one line for each step, just before it begins."""
    seconds: dict[str, list[float]] = {}  # that steps took, by kind
    for number, step in enumerate(steps, start=1):
        left = seconds_left([step.kind for step in steps[number - 1 :]], seconds)
        say(f"step {number} of {len(steps)}{'' if left is None else f', {spoken_time(left)} left'}: {step.what}")
        began = time.monotonic()
        step.act()
        seconds.setdefault(step.kind, []).append(time.monotonic() - began)


def seconds_left(kinds: Sequence[str], done: Mapping[str, Sequence[float]]) -> float | None:
    """Seconds that steps of these kinds will take, judged by the seconds of those that are done; None if none is.

    A step takes as long as those of its kind did on average or, while none of them is done, as all steps did.
    """
    every = [seconds for took in done.values() for seconds in took]
    return sum(fmean(done.get(kind, every)) for kind in kinds) if every else None


def spoken_time(seconds: float) -> str:
    """A time to wait, as precisely as such an estimate can be: `about 4 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min"
