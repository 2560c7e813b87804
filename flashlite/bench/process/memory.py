"""What a process says of its own memory, where the system has /proc."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path


def memory_status(name: str) -> int:
    """A field of this process's memory status in bytes, such as VmRSS; 0 where the system has no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)


def bytes_from_drive() -> int:
    """What this process made the drive read so far, page faults included; 0 where the system doesn't say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def forget_peak() -> None:
    """Let the process's highest memory (VmHWM) be counted anew, where the system has /proc."""
    clear_refs = Path("/proc/self/clear_refs")
    if clear_refs.exists():
        clear_refs.write_text("5")


def free() -> None:
    """Give the memory of what was deleted back to the system, whose cap counts it otherwise."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
