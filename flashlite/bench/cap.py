"""A hard limit on memory, enforced by the operating system and counting the page cache too.

    with memory_cap(500_000_000) as cap:
        subprocess.run(cap.wrap(["python", "script.py"]))
        print(cap.how, cap.peak_bytes)

A process that passes the limit is killed, so a program that ends properly has proved what it needs. Linux offers this
by control groups, version 1 or 2, or through systemd; where none of them is granted, `enforced` is False.

A control group counts each page once, for the group whose process touched it first. Most pages of Python's and torch's
libraries are in memory already when a measuring process begins, so they count to another group. The process's own
resident set (RSS) counts them all, and may therefore pass a cap that the process keeps.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashlite.bench.process.run import run_worker
from flashlite.bench.process.task import IdleTask, Setup
from flashlite.bench.row import Record

if TYPE_CHECKING:  # so that a result can be read without torch
    from flashlite.storage.store import Store

log = logging.getLogger("flashlite")

CGROUPS = Path("/sys/fs/cgroup")
ENTER = 'echo 0 > "$0/cgroup.procs" && exec "$@"'  # 0 means the process that writes
NO_LIMIT = 2**50
WORK_BYTES = 4 * 2**20
HOW = "torch.cuda.set_per_process_memory_fraction"
DEVICE_WORK_BYTES = 128 * 2**20  # what torch's allocator may hold beyond what is in use, and activations
INDEX_BYTES = 22  # of a neuron, in window and pool
PROMPT_COPIES = 32  # of a prompt's hidden states, in the activations of a layer
PAGE_TABLE_SHARE = 8 / 4096


@dataclass(frozen=True)
class Base(Record):
    """What a process needs beyond its budget, in bytes; work: activations and the allocator."""

    libraries: int
    kv_cache: int
    work: int
    total: int


@dataclass(frozen=True)
class CapReport(Record):
    """What there is to say of a benchmark's memory cap; as it is by default where none was asked for.

    bytes: the cap, which is the budget and `base_bytes`
    enforced, how: whether the system enforces it, and by what
    base_bytes: what a process needs beyond the budget, counted as the system counts it
    peak_bytes: the most that was in use
    dense_fits: whether the dense model runs under the cap; None where that wasn't tried
    """

    bytes: int | None = None
    enforced: bool = False
    how: str | None = None
    base_bytes: int | None = None
    peak_bytes: int | None = None
    dense_fits: bool | None = None


@dataclass(frozen=True)
class Cap:
    """A limit of `nbytes`. how: what enforces it, or None where nothing does; group: its control group's folder."""

    nbytes: int
    how: str | None = None
    group: Path | None = None

    @property
    def enforced(self) -> bool:
        """Whether the system would kill a process that passes the limit."""
        return self.how is not None

    @property
    def peak_bytes(self) -> int | None:
        """The most memory, page cache included, that was in use so far; None where the system doesn't say."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if self.group is not None and (self.group / name).exists():
                return int((self.group / name).read_text())
        return None

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` under the limit."""
        if self.group is not None:
            return ["/bin/sh", "-c", ENTER, str(self.group), *command]
        return [*_systemd(self.nbytes), *command] if self.how == "systemd" else list(command)


@contextlib.contextmanager
def memory_cap(nbytes: int) -> Iterator[Cap]:
    """A limit for the processes that are run inside `with`; announced in one line where it can't be enforced."""
    for version, make in (("cgroup v2", _version_2), ("cgroup v1", _version_1)):
        group = make(nbytes)
        if group is not None:
            try:
                yield Cap(nbytes, version, group)
            finally:
                with contextlib.suppress(OSError):
                    group.rmdir()
            return
    if _works([*_systemd(nbytes), "true"]):
        yield Cap(nbytes, "systemd")
        return
    log.warning("flashlite: the memory cap of %d bytes is not enforced: no control group may be made here", nbytes)
    yield Cap(nbytes)


def fixed_base(store: Store, libraries: int, prompt_tokens: int, tokens: int) -> Base:
    """What a process needs beyond the budget: libraries (measured, in bytes), KV cache, activations and allocator.

    A prompt's product puts one of attention's matrices into another order first, and the allocator keeps its place.
    """
    shape, config, itemsize = store.shape, store.config, store.compute_dtype.itemsize
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * store.layers * store.family.cached_heads(config) * head_dim * itemsize  # of one token
    cache = cached * (prompt_tokens + tokens)
    indices = INDEX_BYTES * store.layers * shape.neurons
    work = WORK_BYTES + indices + (shape.d_model + PROMPT_COPIES * prompt_tokens) * shape.d_model * itemsize
    return Base(libraries, cache, work, libraries + cache + work)


def counted_base(store: Store, setup: Setup, budget: int, worker: Sequence[str]) -> int:
    """What a process needs beyond a budget of so many bytes, as the system counts it, by one that loads no model."""
    with memory_cap(NO_LIMIT) as group:
        idle = run_worker(IdleTask(setup), group.wrap(worker))
        base = fixed_base(store, idle.base_rss_bytes, len(setup.prompt), setup.tokens).total
        if group.peak_bytes:
            base += group.peak_bytes - idle.peak_rss_bytes
    return base + int(budget * PAGE_TABLE_SHARE)


def device_cap(store: Store, setup: Setup, budget: int, worker: Sequence[str]) -> CapReport:
    """The cap of a device's memory under which measuring processes set themselves: a budget of so many bytes, and what
    torch holds there without a model. Only a GPU's can be enforced."""
    held = run_worker(IdleTask(setup), worker).device_peak_bytes
    cache = fixed_base(store, 0, len(setup.prompt), setup.tokens).kv_cache
    base = (held or 0) + cache + DEVICE_WORK_BYTES
    return CapReport(budget + base, held is not None, None if held is None else HOW, base)


def _own_group(controller: str) -> str | None:
    """This process's control group of a controller; the empty name is that of version 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    return next((path for _, names, path in (line.split(":", 2) for line in lines) if controller == names), None)


def _version_1(nbytes: int) -> Path | None:
    limits = {"memory.limit_in_bytes": nbytes, "memory.memsw.limit_in_bytes": nbytes}
    return _new_group(CGROUPS / "memory", _own_group("memory"), limits)


def _version_2(nbytes: int) -> Path | None:
    if not (CGROUPS / "cgroup.controllers").exists():
        return None
    return _new_group(CGROUPS, _own_group(""), {"memory.max": nbytes, "memory.swap.max": 0})


def _new_group(root: Path, own: str | None, limits: dict[str, int]) -> Path | None:
    """A group beside our own, or under the root, with these limits; None if the system refuses."""
    parents = [root / own.strip("/") for own in [own] if own is not None] + [root]
    for parent in parents:
        group = parent / f"flashlite-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name, value in limits.items():
                if (group / name).exists() or name == next(iter(limits)):
                    (group / name).write_text(str(value))
        except OSError:
            group.rmdir()
            continue
        if _works(Cap(0, "cgroup", group).wrap(["true"])):
            return group
        group.rmdir()
    return None


def _systemd(nbytes: int) -> list[str]:
    limits = ["-p", f"MemoryMax={nbytes}", "-p", "MemorySwapMax=0"]
    return ["systemd-run", "--user", "--scope", "--quiet", "--collect", *limits, "--"]


def _works(command: Sequence[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
