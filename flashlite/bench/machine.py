"""What a measurement was made on: processor, memory, system, drive."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from flashlite.drive.direct import direct_alignment


def host() -> dict[str, Any]:
    """The machine: processor, cores, memory, system, versions."""
    return {
        "processor": _processor(), "cores": os.cpu_count(), "memory_bytes": _total_memory(),
        "system": f"{platform.system()} {platform.release()}", "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def drive(path: Path) -> dict[str, Any]:
    """The drive that a file lies on: its device's name and its grid for direct reads."""
    number = path.stat().st_dev
    link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    device = link.resolve().name if link.exists() else "unknown"
    return {"device": device, "alignment": direct_alignment(path)}
