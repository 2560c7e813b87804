"""What is measured in a process of its own: four kinds of task, each with the answer that it gets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from flashlite.bench.row import DenseCost, IdleCost, PeerCost, Record, StageRun

LOGITS, CHECKPOINT = "logits.safetensors", "checkpoint"  # names in a benchmark's folder
Answer = TypeVar("Answer", bound=Record)


@dataclass(frozen=True)
class Setup(Record):
    """What all tasks of a benchmark share.

    store: the packed model's folder
    folder: the benchmark's own, for the dense model's logits and for the peers' checkpoint
    prompt: token ids
    tokens: how many to generate
    device: where the weights lie and are multiplied, as `load` takes it
    device_bytes: the most that the process may take of the device's memory; None for no limit
    """

    store: str
    folder: str
    prompt: list[int]
    tokens: int
    device: str = "cpu"
    device_bytes: int | None = None


@dataclass(frozen=True)
class Task(Record, Generic[Answer]):
    """Something to measure."""

    setup: Setup

    @property
    def streams(self) -> bool:
        """Whether the process is flashlite's own engine, and no other program that is measured as its users have it."""
        return False

    def read(self, answer: Any) -> Answer:
        """The answer that the measuring process printed."""
        raise NotImplementedError


@dataclass(frozen=True)
class IdleTask(Task[IdleCost]):
    """Load no model, and say what the process itself needs."""

    def read(self, answer: Any) -> IdleCost:
        """The memory of the process."""
        return IdleCost.from_json(answer)


@dataclass(frozen=True)
class DenseTask(Task[DenseCost]):
    """Run the dense model, and leave its tokens and logits in the folder; all other models are compared with them.

    streamed: whether naive loading takes its place, see larger.py
    """

    streamed: bool = False

    @property
    def streams(self) -> bool:
        """See Task."""
        return self.streamed

    def read(self, answer: Any) -> DenseCost:
        """What the dense model costs."""
        return DenseCost.from_json(answer)


@dataclass(frozen=True)
class StageTask(Task[StageRun]):
    """Run a stage of the ladder.

    stage: its number
    budget: DRAM budget, as `load` takes it
    window: tokens whose neurons stay in DRAM, or "auto"
    predictor: trained, copy or oracle
    check: how many tokens to compare with the dense model's, by the oracle predictor; stages that have no predictor
        are compared for all tokens
    verify_reads: whether what the stage reads is compared with its checksums
    """

    stage: int
    budget: int | str = "50%"
    window: int | str = 5
    predictor: str = "trained"
    check: int = 0
    verify_reads: bool = False

    @property
    def streams(self) -> bool:
        """See Task."""
        return True

    def read(self, answer: Any) -> StageRun:
        """What the stage costs."""
        return StageRun.from_json(answer)


@dataclass(frozen=True)
class PeerTask(Task[PeerCost]):
    """Run what people use today, by its name in `peers.PEERS`."""

    peer: str

    def read(self, answer: Any) -> PeerCost:
        """What the peer costs."""
        return PeerCost.from_json(answer)


KINDS: dict[str, type[Task[Any]]] = {"idle": IdleTask, "dense": DenseTask, "stage": StageTask, "peer": PeerTask}


def write_task(path: Path, task: Task[Any]) -> None:
    """Write a task and its kind to a file."""
    kind = next(kind for kind, known in KINDS.items() if type(task) is known)
    path.write_text(json.dumps({"kind": kind, "task": task.to_json()}))


def read_task(path: Path) -> Task[Any]:
    """The task of `write_task`."""
    content = json.loads(path.read_text())
    return KINDS[content["kind"]].from_json(content["task"])
