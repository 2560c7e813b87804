"""The ladder measured: every stage in a fresh process, in balanced order, beside what it must cost by the model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from flashlite.arguments import parse_budget
from flashlite.bench.cap import HOW, CapReport, counted_base, device_cap, fixed_base, memory_cap
from flashlite.bench.cost import Speeds, Work, device_token_ms, token_ms
from flashlite.bench.machine import Ceiling, Disturbance, cores_of_others, drive, host, measure_ceiling
from flashlite.bench.peers import PEERS, missing_of, peers_of, too_large
from flashlite.bench.peers.checkpoint import export
from flashlite.bench.peers.run import run_peer
from flashlite.bench.process.device import device_info
from flashlite.bench.process.larger import fits
from flashlite.bench.process.run import WORKER, Step, run_steps, run_worker
from flashlite.bench.process.task import CHECKPOINT, DenseTask, PeerTask, Setup, StageTask, Task
from flashlite.bench.result import Result, mean_dense, median_peer, median_run
from flashlite.bench.row import DenseCost, MeasuredStage, PeerRow, StageRun
from flashlite.drive.probe import Curve
from flashlite.engine.device.place import place_of
from flashlite.engine.ffn import FlashFFN
from flashlite.engine.model import choose_stage, plan
from flashlite.engine.stages import LADDER, NAMES
from flashlite.errors import FlashliteError, KilledError
from flashlite.storage.store import Store, ffn_file
from flashlite.storage.tokenizer import first_token, load_tokenizer

Kind = TypeVar("Kind", bound=Task[Any])
DENSE, LARGER = "the dense model", "naive loading in the place of the dense model, which this machine has no memory for"
PROMPT = '''def read_table(path, separator=","):
    """Read a table of numbers from a text file.

    Lines that start with a hash are comments and are skipped.
    """
    rows = []
    with open(path, encoding="utf-8") as handle:
        for line in handle:
'''


class Interrupted(KeyboardInterrupt):
    """A benchmark was interrupted. result: what was complete by then; None if that was no stage."""

    def __init__(self, result: Result | None) -> None:
        super().__init__("the benchmark was interrupted")
        self.result = result


def prompt_ids(store: Store, length: int) -> list[int]:
    """The benchmark's prompt: the first tokens of a piece of Python. Raises FlashliteError if it can't be so long."""
    if length >= store.config.max_position_embeddings:
        raise FlashliteError(f"a prompt of {length} tokens exceeds the model's {store.config.max_position_embeddings}")
    ids = load_tokenizer(store)(PROMPT, add_special_tokens=False)["input_ids"]
    return [*first_token(store), *(ids * (length // len(ids) + 1))][:length]


def bench(
    store: Store, *, stages: Sequence[int], tokens: int = 64, prompt_tokens: int = 32, budget: int | str = "50%",
    window: int | str = 5, predictor: str = "trained", rounds: int = 3, capped: bool = False, peers: bool = False,
    slow_tokens: int | None = None, check_tokens: int | None = None, verify_reads: bool = False, device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None, worker: Sequence[str] = WORKER,
) -> Result:  # fmt: skip
    """Measure stages of the ladder.

    tokens, prompt_tokens: how many to generate, after a prompt of how many
    budget, window, predictor: as `load` takes them
    rounds: processes for each stage; the row is the one of median time
    capped: run every stage under a memory cap of the budget and the base, page cache included; with a device it is a
        cap of the device's memory
    peers: measure what people use today as well
    slow_tokens: how many to generate where every weight is read for each token; `tokens` unless given
    check_tokens: how many to compare with the oracle; `tokens` unless given
    verify_reads: compare what stages read with its checksums
    device: where weights lie and are multiplied, as `load` takes it
    progress: takes a line for each step
    worker: the command that runs one measurement; another one may run the engine on somebody else's code

    Raises FlashliteError, and shows no speed, if a stage doesn't give the dense model's tokens with the oracle; and
    Interrupted, with what is complete, in place of KeyboardInterrupt.
    """
    _check(store, stages, prompt_tokens + tokens, budget, predictor, window, device)
    names = peers_of(store, device) if peers else []
    for package in missing_of(store, device) if peers else []:
        progress(f"{package} is not measured, because it is not installed: pip install {package}")
    for name in too_large(store, device) if peers else []:
        progress(f"{name} is not measured, because this machine has no memory for all weights in bf16")
    others = cores_of_others()
    with _own_folder(store, peers) as folder:
        setup = Setup(str(store.path), folder, prompt_ids(store, prompt_tokens), tokens, device)
        slow = replace(setup, tokens=slow_tokens or tokens)
        wish = StageTask(setup, 0, budget, window, predictor, check_tokens or tokens, verify_reads)
        tasks = {
            stage: replace(wish, stage=stage, setup=setup if LADDER[NAMES[stage]].predictor else slow)
            for stage in stages
        }
        rivals = [PeerTask(slow if PEERS[name].capped else setup, name) for name in names]
        benchmark = _Benchmark(store, wish, tasks, rivals, rounds, worker)
        try:
            with benchmark.stack:
                run_steps(benchmark.steps(capped), progress)
        except KeyboardInterrupt:
            raise Interrupted(benchmark.result(others) if benchmark.runs else None) from None
        return benchmark.result(others)


def _check(
    store: Store, stages: Sequence[int], tokens: int, budget: int | str, predictor: str, window: int | str, device: str
) -> None:  # fmt: skip
    """Raise FlashliteError for what can't work, before anything is measured. tokens: of the whole text."""
    place, positions = place_of(device), store.config.max_position_embeddings
    if tokens >= positions:
        raise FlashliteError(f"a text of {tokens} tokens is too long: the model has {positions} positions")
    for stage in stages:
        plan(store, choose_stage(store, stage, window, budget, place), budget, predictor, place)


def _own_folder(store: Store, peers: bool) -> tempfile.TemporaryDirectory[str]:
    """A benchmark's own folder, beside the store, because the peers' checkpoint must lie on the same drive.

    Where no folder can be made there, and no peers are measured, it is in the system's folder for temporary files.
    """
    beside = store.path.parent
    for place in (beside,) if peers else (beside, None):
        try:
            return tempfile.TemporaryDirectory(prefix=".flashlite-bench-", dir=place)
        except OSError as error:
            reason = error.strerror
    wanted = "beside the store, because --peers needs a checkpoint on the same drive" if peers else "for its own files"
    raise FlashliteError(f"bench needs a folder {wanted}, and {beside} cannot be written: {reason}")


class _Benchmark:
    """A benchmark under way: what is to be measured, and what has been.

    wish: how stages run; tasks: what to measure of each stage, by its number; rivals: the same of the peers
    dense: what the dense model gave, at the run's ends; runs: what the rounds of each stage gave
    """

    def __init__(
        self, store: Store, wish: StageTask, tasks: dict[int, StageTask], rivals: list[PeerTask], rounds: int,
        worker: Sequence[str],
    ) -> None:  # fmt: skip
        self.store, self.wish, self.tasks, self.rivals, self.rounds = store, wish, tasks, rivals, rounds
        self.path = store.path / ffn_file(store.layouts[-1])
        self.budget = parse_budget(wish.budget, store.weight_bytes)
        self.drive: tuple[Curve, Ceiling] | None = None
        self.dense: list[DenseCost] = []
        self.runs: dict[int, list[StageRun]] = {}
        self.peers: dict[str, list[PeerRow]] = {task.peer: [] for task in rivals}
        self.cap, self.worker, self.stack = CapReport(), worker, contextlib.ExitStack()
        self.device = place_of(wish.setup.device).device
        self.streamed = self.device.type == "cpu" and not fits(store)  # a GPU takes the weights part by part

    def steps(self, capped: bool) -> list[Step]:
        """All that is to be done. Every stage runs once a round, the order turned round each time."""
        dense = Step("dense", LARGER if self.streamed else DENSE, self._run_dense)
        steps = [Step("drive", "what the drive gives", self._measure_drive), dense]
        if self.rivals:
            steps.insert(0, Step("checkpoint", "the same weights as a checkpoint, for the peers", self._export))
        if capped:
            steps.append(Step("idle", "what a process needs without a model", self._begin_cap))
        for number in range(self.rounds):
            turn = self._round(f", round {number + 1} of {self.rounds}")
            steps += turn if number % 2 == 0 else reversed(turn)
        steps += [self._peer_step(task, "") for task in self.rivals if PEERS[task.peer].capped]
        if capped:
            steps.append(Step("dense", "the dense model under the cap", self._end_cap))
        return [*steps, dense] if self.rounds > 1 else steps  # at both ends, so that a drift of the machine shows

    def _round(self, which: str) -> list[Step]:
        """Every stage once, and every peer that is as quick as they are."""
        stages = [
            Step(f"stage {stage}", f"stage {stage} {NAMES[stage]}{which}", partial(self._run_stage, stage))
            for stage in self.tasks
        ]
        return stages + [self._peer_step(task, which) for task in self.rivals if not PEERS[task.peer].capped]

    def _peer_step(self, task: PeerTask, which: str) -> Step:
        return Step(task.peer, f"peer: {task.peer}{which}", partial(self._run_peer, task))

    def _export(self) -> None:
        checkpoint = export(self.store, Path(self.wish.setup.folder) / CHECKPOINT)
        for task in self.rivals:
            PEERS[task.peer].prepare(checkpoint)

    def _measure_drive(self) -> None:
        self.drive = measure_ceiling(self.path, self.store.shape.record_bytes)

    def _run_dense(self) -> None:
        self.dense.append(run_worker(DenseTask(self.wish.setup, self.streamed)))

    def _run_stage(self, stage: int) -> None:
        """One round of a stage, checked for exactness in the first."""
        task = replace(self.tasks[stage], check=0) if stage in self.runs else self.tasks[stage]
        run = run_worker(self._limited(task), self.worker)
        self.runs.setdefault(stage, []).append(run)

    def _run_peer(self, task: PeerTask) -> None:
        capped = PEERS[task.peer].capped
        self.peers[task.peer].append(run_peer(self._limited(task), self.worker) if capped else run_peer(task))

    def _limited(self, task: Kind) -> Kind:
        """A task under the cap of the device's memory, if there is one."""
        nbytes = self.cap.bytes if self.cap.how == HOW else None
        return task if nbytes is None else replace(task, setup=replace(task.setup, device_bytes=nbytes))

    def _begin_cap(self) -> None:
        """From now on every process runs under a cap of the budget and what a process needs without a model."""
        if self.wish.setup.device != "cpu":
            self.cap = device_cap(self.store, self.wish.setup, self.budget, self.worker)
            return
        base = counted_base(self.store, self.wish.setup, self.budget, self.worker)
        self.group = self.stack.enter_context(memory_cap(self.budget + base))
        self.worker = self.group.wrap(self.worker)
        self.cap = CapReport(self.budget + base, self.group.enforced, self.group.how, base)

    def _end_cap(self) -> None:
        if not self.cap.enforced and (self.wish.setup.device != "cpu" or self.streamed):
            return  # what nothing limits takes the memory of the whole machine
        runs = [run for runs in self.runs.values() for run in runs]
        peak = self.group.peak_bytes if self.cap.how != HOW else max(run.device_peak_bytes or 0 for run in runs)
        dense_fits = True
        try:
            run_worker(self._limited(DenseTask(self.wish.setup)), self.worker)
        except KilledError:  # as it must be under a cap that is worth something
            dense_fits = False
        self.cap = replace(self.cap, peak_bytes=peak, dense_fits=dense_fits)

    def result(self, others: float | None) -> Result:
        """What is complete; there must be a stage. others: cores that other processes used before the run."""
        assert self.drive is not None
        (curve, ceiling), setup, dense = self.drive, self.wish.setup, mean_dense(self.dense)
        drift = abs(self.dense[-1].total_ms - self.dense[0].total_ms) / dense.total_ms if len(self.dense) > 1 else None
        runs = [median_run(runs) for runs in self.runs.values()]
        rows = [beside_prediction(run, curve, dense.rest_ms, self.store.shape.record_bytes) for run in runs]
        libraries = max(dense.base_rss_bytes, *(row.base_rss_bytes for row in rows))
        return Result(
            model=self.store.manifest["name"], planted="planted" in self.store.manifest, dtype=self.store.dtype_name,
            weight_bytes=self.store.weight_bytes, budget_bytes=self.budget, memory_cap=self.cap,
            prompt_tokens=len(setup.prompt), new_tokens=setup.tokens, window=self.wish.window, rounds=self.rounds,
            host=host(), drive=drive(self.path), ceiling=ceiling, curve=curve,
            disturbance=Disturbance(others, dense.scatter, drift), dense=dense,
            base=fixed_base(self.store, libraries, len(setup.prompt), setup.tokens), stages=rows,
            peers=[median_peer(rows) for rows in self.peers.values() if rows],
            device=setup.device, gpu=device_info(self.device),
        )  # fmt: skip


def beside_prediction(run: StageRun, curve: Curve, rest_ms: float, record_bytes: int) -> MeasuredStage:
    """A stage with the time that a token must take on this machine.

    curve: what the drive gives; rest_ms: a token's time without its FFNs; record_bytes: bytes of a neuron.
    """
    stage = LADDER[run.name]
    copied = 0.0 if stage.memory.spare == 0 or not stage.predictor else run.rows_moved * record_bytes
    work = Work(
        run.reads_per_token, run.bytes_per_token, run.batches_per_token, copied, run.product_bytes,
        overlapped=stage.ffn is not FlashFFN,
    )  # fmt: skip
    speeds = Speeds(run.product_bytes_a_second, run.copy_bytes_a_second, rest_ms)
    bus = run.bus_bytes_a_second
    predicted = token_ms(curve, work, speeds) if bus is None else device_token_ms(curve, work, speeds, bus)
    return MeasuredStage(**vars(run), predicted_ms=predicted)
