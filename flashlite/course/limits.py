"""What a student's code may use while it is graded, enforced by the operating system.

Set in the child process before the student's file is imported: what runs between fork and exec is not safe beside
threads. It stops accidents, such as a list that grows without end; it is no sandbox.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

RESERVE = 200 * 10**6  # bytes in which a process whose memory is full can report it
KEPT = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "SYSTEMROOT")
KEPT_FAMILIES = ("LC_", "OMP_", "MKL_", "OPENBLAS_")


@dataclass(frozen=True)
class Limits:
    """memory: bytes of data, the 0.35 GB of torch included; file: bytes of any one file; seconds: of the clock, which
    grade.py keeps itself; cores: how many may be busy all that time.
    """

    memory: int = 2 * 10**9
    file: int = 100 * 10**6
    seconds: float = 60.0
    cores: float = 2.0

    @property
    def processor(self) -> int:
        """Seconds of processor time, all threads together."""
        return math.ceil(self.cores * self.seconds)

    def to_json(self) -> str:
        """For the command line of the child."""
        return json.dumps(asdict(self))

    def apply(self) -> None:
        """Limit this process and all that it starts; what `missing` names stays without limit."""
        if resource is None:
            return
        _lower(resource.RLIMIT_CORE, 0)
        _lower(resource.RLIMIT_FSIZE, self.file)
        _lower(resource.RLIMIT_CPU, self.processor, 1)  # a second later the system kills what ignores the first signal
        if sys.platform == "linux":
            _lower(resource.RLIMIT_DATA, self.memory, RESERVE)

    def exceeded(self, error: BaseException) -> str | None:
        """What limit an exception tells of, if it does."""
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            _use_reserve()
            return f"it used more than {self.memory / 1e9:g} GB of memory"
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            return f"it wrote a file larger than {self.file / 1e6:g} MB"
        return None

    def ended(self, code: int) -> str | None:
        """What limit a process's exit code tells of, if it does."""
        if hasattr(signal, "SIGXCPU") and code == -signal.SIGXCPU:
            return f"it used more than {self.processor} s of processor time"
        return None


def _lower(which: int, most: int, grace: int = 0) -> None:
    """Set a limit, no higher than the one in force."""
    hard = resource.getrlimit(which)[1]
    values = (most, most + grace) if hard == resource.RLIM_INFINITY else (min(most, hard), min(most + grace, hard))
    resource.setrlimit(which, values)


def _use_reserve() -> None:
    """Let a process whose memory is full say so."""
    if resource is not None:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def missing() -> str | None:
    """What this system can't limit, in a line; None if it can limit everything."""
    if resource is None:
        return "students' code runs without limits on memory, files and processor time: this system has none"
    if sys.platform != "linux":
        return "students' code runs without a limit on memory: this system enforces none"
    return None


def environment(inherited: Mapping[str, str], modules: str, folder: str) -> dict[str, str]:
    """The variables that a student's code sees: what Python needs to start, and nothing that is secret.

    modules: the folder that Python finds flashlite in; folder: the only one that the code should write to.
    """
    kept = {name: value for name, value in inherited.items() if name in KEPT or name.startswith(KEPT_FAMILIES)}
    paths = [modules, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    private = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP", "USERPROFILE"), folder)
    python = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
    return {"OMP_NUM_THREADS": "1"} | kept | python | private
