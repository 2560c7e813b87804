"""The result of a benchmark as one typed object, whose JSON form `flashlite bench --json` writes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from flashlite.bench.cap import Base, CapReport
from flashlite.bench.machine import Ceiling, Disturbance, Drive, Host
from flashlite.bench.row import DenseCost, DeviceInfo, MeasuredStage, PeerRow, Record, StageRun
from flashlite.drive.probe import Curve
from flashlite.errors import FlashliteError


@dataclass(frozen=True, kw_only=True)
class Result(Record):
    """A benchmark; its JSON form is what `flashlite bench --json` writes.

    model, planted, dtype, weight_bytes: what was measured; the weights of a planted model are made up
    budget_bytes, memory_cap: the DRAM that stages were given, and what the system enforced
    prompt_tokens, new_tokens, window, rounds: the text, the window, and how many processes each stage had
    host, drive, ceiling, curve: where it was measured
    device, gpu: where weights lay and were multiplied, as `load` takes it, and which GPU that is
    disturbance: what else kept the machine busy; None in results that lack it
    dense, base: the dense model, and what a process needs beyond the budget
    stages, peers: the rows
    impl, plugged, calls: whose code ran, from which files of exercises, and how often each exercise was called
    """

    model: str
    planted: bool
    dtype: str
    weight_bytes: int
    budget_bytes: int
    memory_cap: CapReport
    prompt_tokens: int
    new_tokens: int
    window: int | str
    rounds: int
    host: Host
    drive: Drive
    ceiling: Ceiling
    curve: Curve
    disturbance: Disturbance | None = None
    dense: DenseCost
    base: Base
    stages: list[MeasuredStage]
    peers: list[PeerRow]
    impl: str = "ref"
    plugged: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"
    gpu: DeviceInfo | None = None

    @property
    def title(self) -> str:
        """The model's name; a model of made-up weights is called planted."""
        return f"{self.model} (planted)" if self.planted else self.model

    @property
    def memory(self) -> str:
        """The memory that a budget is of, as it is called in tables."""
        return "DRAM" if self.device == "cpu" else "device memory"

    @property
    def dense_title(self) -> str:
        """Whose products the dense model's are: transformers', but flashlite's where the weights are int8."""
        if self.dense.streamed:
            return "flashlite, naive loading"
        return "flashlite, all in DRAM" if self.dtype == "int8" else f"transformers in {self.memory}"

    @property
    def budget_share(self) -> float:
        """The budget as a share of the weights, 0 to 1."""
        return self.budget_bytes / self.weight_bytes


def median_run(runs: list[StageRun]) -> StageRun:
    """The run of median time among the runs of one stage, with the memory of the largest and the first's exactness.

    Raises FlashliteError if the runs read different amounts.
    """
    if len({run.bytes_per_token for run in runs}) > 1:
        raise FlashliteError(f"stage {runs[0].stage} read different amounts in different runs: counts must not vary")
    median = sorted(runs, key=lambda run: run.total_ms)[(len(runs) - 1) // 2]
    return replace(
        median, tokens_equal=runs[0].tokens_equal, max_logit_error=runs[0].max_logit_error,
        peak_rss_bytes=max(run.peak_rss_bytes for run in runs),
    )  # fmt: skip


def median_peer(rows: list[PeerRow]) -> PeerRow:
    """The row of median time among those of one peer; one without figures if it was killed in any."""
    costs = sorted((row.cost for row in rows if row.cost), key=lambda cost: cost.total_ms)
    return replace(rows[0], cost=costs[(len(costs) - 1) // 2] if len(costs) == len(rows) else None)


def mean_dense(runs: list[DenseCost]) -> DenseCost:
    """The dense model's times at both ends of a run, of which the mean counts; the worse one where tokens scatter."""
    first, last = runs[0], runs[-1]
    return replace(
        first, total_ms=(first.total_ms + last.total_ms) / 2, prompt_ms=(first.prompt_ms + last.prompt_ms) / 2,
        rest_ms=(first.rest_ms + last.rest_ms) / 2, scatter=max(run.scatter or 0.0 for run in runs),
    )  # fmt: skip
