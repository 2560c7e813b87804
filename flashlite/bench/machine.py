"""What a measurement is made on: processor, memory and drive, and whether something else kept them busy meanwhile."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashlite.bench.row import Record
from flashlite.drive.direct import direct_alignment
from flashlite.drive.probe import DEPTHS, SIZES, Curve, probe_file, random_mb_s
from flashlite.engine.kernels.others import Others

DEPTH = 128  # reads in flight of the drive's ceiling

# A product waits for its slowest thread: a core of which others take a fifth makes it a fifth slower.
CORES_OF_OTHERS = 0.2
# The dense model does the same work for each token, so its tokens differ by what the machine does meanwhile. A row's
# times are means over the middle half of tokens; where this half is wider than a tenth, or where the dense model takes
# a tenth more at one end of the run than at the other, two stages that differ by a tenth can't be told apart.
SCATTER = DRIFT = 0.1


@dataclass(frozen=True)
class Host(Record):
    """A machine: its processor and memory, and the versions of what runs on it."""

    processor: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    torch: str
    transformers: str


@dataclass(frozen=True)
class Drive(Record):
    """The drive that a file lies on: its device's name, and the grid of its direct reads in bytes."""

    device: str
    alignment: int


@dataclass(frozen=True)
class Ceiling(Record):
    """The most that a drive gives: random reads of `record_bytes`, `depth` of them in flight, and reads in order."""

    record_bytes: int
    depth: int
    random_mb_s: float
    sequential_mb_s: float


@dataclass(frozen=True)
class Disturbance(Record):
    """The signs of something else that kept the machine busy; each is None where it couldn't be seen.

    cores_of_others: cores that other processes used just before the run
    dense_scatter: width of the middle half of the dense model's tokens, as a share of their median
    dense_drift: difference of the dense model's time at both ends of the run, as a share of it
    """

    cores_of_others: float | None
    dense_scatter: float | None
    dense_drift: float | None

    @property
    def signs(self) -> list[str]:
        """What makes times untrustworthy, in words; empty on a quiet machine."""
        bounds = (
            (self.cores_of_others, CORES_OF_OTHERS, "other processes used {:.1f} cores before the run"),
            (self.dense_scatter, SCATTER, "the dense model's own tokens scatter by {:.0%}"),
            (self.dense_drift, DRIFT, "the dense model's time changed by {:.0%} during the run"),
        )
        return [words.format(seen) for seen, most, words in bounds if seen is not None and seen > most]

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the signs in words as well."""
        return super().to_json() | {"signs": self.signs}


def host() -> Host:
    """This machine."""
    import torch  # which reading a result does without
    import transformers

    system = f"{platform.system()} {platform.release()}"
    versions = platform.python_version(), torch.__version__, transformers.__version__
    return Host(_processor(), os.cpu_count() or 1, _total_memory(), system, *versions)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def drive(path: Path) -> Drive:
    """The drive that a file lies on."""
    number = path.stat().st_dev
    link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return Drive(link.resolve().name if link.exists() else "unknown", direct_alignment(path))


def measure_ceiling(path: Path, record_bytes: int) -> tuple[Curve, Ceiling]:
    """What the drive gives, measured on a large file that is there already, in records of this size among others."""
    curve = probe_file(path, sorted({*SIZES, record_bytes}), DEPTHS[::2] + DEPTHS[-1:])
    random = random_mb_s(path, record_bytes, DEPTH, np.random.default_rng(0))
    return curve, Ceiling(record_bytes, DEPTH, random, curve.sequential_mb_s)


def cores_of_others(seconds: float = 1.0) -> float | None:
    """Cores that other processes keep busy while this one sleeps so long; None where the system doesn't say."""
    others = Others()
    time.sleep(seconds)
    return others.cores()
