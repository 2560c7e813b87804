"""Measuring a peer in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flashlite.bench.process.run import WORKER, run_worker
from flashlite.bench.process.task import CHECKPOINT, PeerTask
from flashlite.bench.row import PeerRow
from flashlite.errors import KilledError
from flashlite.storage.safetensors_file import drop_from_cache


def run_peer(task: PeerTask, worker: Sequence[str] = WORKER) -> PeerRow:
    """Measure a peer, which the system may kill because memory runs out."""
    for file in (Path(task.setup.folder) / CHECKPOINT).rglob("*"):
        if file.is_file():
            drop_from_cache(file)  # what is cached already counts to nobody's cap
    try:
        return PeerRow(task.peer, run_worker(task, worker))
    except KilledError:
        return PeerRow(task.peer, None)
