"""What other programs keep busy of the processor: torch's threads suffer from it, see waiting.py."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from flashlite.engine.kernels.waiting import BRIEFLY, SPINS, has_chosen

log = logging.getLogger("flashlite")

BUSY_TICKS = (0, 1, 2, 5, 6, 7)  # of a line of /proc/stat: user, nice, system, interrupts, and what a host takes away
HALF_A_CORE = 0.5  # less is what any machine has to do
SHORTEST = 0.1  # seconds in which ticks of the system's clock can be counted


class Others:
    """The cores that other processes keep busy, of those that this process may use, from when this object is made.

    own: the numbers of these cores
    counted: whether the system counts what each core does
    """

    def __init__(self) -> None:
        self.own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        self._began, self._spent, self._all = time.perf_counter(), time.process_time(), _busy_seconds(self.own)
        self.counted = self._all is not None

    def cores(self) -> float | None:
        """How many, on average; None where the system doesn't say, or where it was asked too soon to tell.

        Where there is no /proc, it is the load of the last minute but for one thread of this process.
        """
        if self._all is None or (now := _busy_seconds(self.own)) is None:
            return max(0.0, os.getloadavg()[0] - 1) if hasattr(os, "getloadavg") else None
        seconds, spent = time.perf_counter() - self._began, time.process_time() - self._spent
        return max(0.0, now - self._all - spent) / seconds if seconds >= SHORTEST else None


def _busy_seconds(cores: set[int]) -> float | None:
    """Seconds that these cores together have worked since the system began.

    Some containers show their own cores alone, under other numbers: then all that are shown count.
    """
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
        by_name = {name: ticks for name, *ticks in lines}
        names = [f"cpu{i}" for i in cores]
        counted = names if by_name.keys() >= set(names) else ["cpu"]
        return sum(int(by_name[name][i]) for name in counted for i in BUSY_TICKS) / os.sysconf("SC_CLK_TCK")
    except (OSError, LookupError, ValueError, AttributeError):
        return None


def warn_if_busy(others: Others, threads: int) -> None:
    """Log one line if other programs need cores that torch's threads count on, unless a user has chosen how long those
    wait for each other.

    Nothing is said where cores aren't counted, because the load of the last minute may be this process's own.

    others: since when
    threads: how many torch has
    """
    busy, cores = others.cores() if others.counted else None, len(others.own)
    chosen = threads == 1 or has_chosen(os.environ)
    if busy is None or chosen or busy < HALF_A_CORE or threads + busy < cores + HALF_A_CORE:
        return
    log.warning(
        "flashlite: other programs keep %.1f of %d cores busy, and torch's %d threads wait for each other: a prompt, "
        "and each token at stages 0 and 1, may take several times as long; start Python with %s=%s in its environment, "
        "or call torch.set_num_threads(1)", busy, cores, threads, SPINS, BRIEFLY
    )  # fmt: skip
