"""What other programs keep busy of the processor: torch's threads suffer from it, see waiting.py."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from flashlite.engine.kernels.waiting import BRIEFLY, CHOICES, SPINS

log = logging.getLogger("flashlite")

BUSY_TICKS = (0, 1, 2, 5, 6, 7)  # of a line of /proc/stat: user, nice, system, interrupts, and what a host takes away
HALF_A_CORE = 0.5  # less is what any machine has to do
SHORTEST = 0.1  # seconds in which ticks of the system's clock can be counted


class Others:
    """The cores that other processes keep busy, from when this object is made."""

    def __init__(self) -> None:
        self._began, self._own, self._all = time.perf_counter(), time.process_time(), _busy_seconds()

    def cores(self) -> float | None:
        """How many, on average; None where the system doesn't say, or where it was asked too soon to tell.

        Where there is no /proc, it is the load of the last minute but for this process.
        """
        if self._all is None or (now := _busy_seconds()) is None:
            return max(0.0, os.getloadavg()[0] - 1) if hasattr(os, "getloadavg") else None
        seconds, own = time.perf_counter() - self._began, time.process_time() - self._own
        return max(0.0, now - self._all - own) / seconds if seconds >= SHORTEST else None


def _busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the system began."""
    try:
        ticks = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        return sum(int(ticks[i]) for i in BUSY_TICKS) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError, AttributeError):
        return None


def warn_if_busy(others: Others, threads: int) -> None:
    """Log one line if other programs need cores that torch's threads count on, unless a user has chosen how long those
    wait for each other.

    others: since when
    threads: how many torch has
    """
    busy, cores = others.cores(), os.cpu_count() or 1
    chosen = threads == 1 or any(name in os.environ for name in CHOICES)
    if busy is None or chosen or busy < HALF_A_CORE or threads + busy < cores + HALF_A_CORE:
        return
    log.warning(
        "flashlite: other programs keep %.1f of %d cores busy, and torch's %d threads wait for each other: a prompt, "
        "and each token at stages 0 and 1, may take several times as long; start Python with %s=%s in its environment, "
        "or call torch.set_num_threads(1)", busy, cores, threads, SPINS, BRIEFLY
    )  # fmt: skip
