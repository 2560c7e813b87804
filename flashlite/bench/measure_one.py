"""One measurement in a process of its own: `python -m flashlite.bench.measure_one TASK.json` prints one JSON object.

`process/task.py` has the tasks, and `process/run.py` starts these processes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from flashlite.bench.cost import bus_speed, copy_speed, product_speed
from flashlite.bench.decoding import (
    WARM_UP,
    Decoding,
    agreement,
    compare_logits,
    compared,
    exactness,
    forced,
    greedy,
    per_token,
)
from flashlite.bench.dense import load_dense
from flashlite.bench.peers import PEERS
from flashlite.bench.process.device import device_peak, forget_device_peak, limit, wait_for
from flashlite.bench.process.larger import measure_naive
from flashlite.bench.process.memory import bytes_from_drive, forget_peak, free, memory_status
from flashlite.bench.process.task import (
    CHECKPOINT,
    LOGITS,
    DenseTask,
    IdleTask,
    PeerTask,
    Setup,
    StageTask,
    Task,
    read_task,
)
from flashlite.bench.process.warm_up import warm_up
from flashlite.bench.row import DenseCost, Exactness, IdleCost, PeerCost, Record, StageRun, TokenCost
from flashlite.engine.device.place import place_of
from flashlite.engine.int8.modules import Int8Linear
from flashlite.engine.model import Engine, load
from flashlite.engine.predictor_file import PredictorSet
from flashlite.engine.stages import LADDER, NAMES
from flashlite.errors import FlashliteError
from flashlite.storage.store import PREDICTOR, Store


def _device(task: Task[Any]) -> torch.device:
    return place_of(task.setup.device).device


def measure_idle(task: IdleTask, store: Store) -> IdleCost:
    """The process as it is without a model."""
    return IdleCost(memory_status("VmRSS"), memory_status("VmHWM"), device_peak(_device(task), reserved=True))


def measure_dense(task: DenseTask, store: Store) -> DenseCost:
    """The dense model: its tokens and logits, for the stages to be compared with, and its time."""
    if task.streamed:
        return measure_naive(task, store)
    setup, before, device = task.setup, memory_status("VmRSS"), _device(task)
    forget_device_peak(device)
    model = load_dense(store, device)
    dram = device_peak(device) or memory_status("VmRSS") - before
    tokens, logits = greedy(model, setup.prompt, setup.tokens)
    save_file({"logits": logits.contiguous(), "tokens": torch.tensor(tokens)}, Path(setup.folder) / LOGITS)
    quiet = forced(model, setup.prompt, tokens) if device.type != "cpu" else None  # watching makes the host wait there
    ffn_seconds = _watch(model, _ffns(model, store), device)
    timed = forced(model, setup.prompt, tokens)
    rest = [ms - ffn for ms, ffn in zip(timed.token_ms, _token_ms(ffn_seconds), strict=True)]
    times = (quiet or timed).token_ms[WARM_UP:]
    lower, median, upper = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    return DenseCost(
        total_ms=median, prompt_ms=(quiet or timed).prompt_ms, rest_ms=float(np.median(rest[WARM_UP:])),
        dram_bytes=dram, base_rss_bytes=before, scatter=(upper - lower) / median, device_peak_bytes=device_peak(device),
    )  # fmt: skip


def _ffns(model: PreTrainedModel, store: Store) -> list[tuple[nn.Module, nn.Module]]:
    """The first and the last part of each layer's FFN."""
    first, *_, last = 2 * store.family.ffn
    return [(getattr(layer, first), getattr(layer, last)) for layer in model.get_submodule(store.family.layers)]


def _watch(model: PreTrainedModel, spans: Sequence[tuple[nn.Module, nn.Module]], device: torch.device) -> list[float]:
    """The seconds spent so far from each first module to its last one, noted at the end of each call from now on."""
    spent, seconds = [0.0], []

    def now() -> float:
        wait_for(device)
        return time.perf_counter()

    for first, last in spans:
        first.register_forward_pre_hook(lambda *_: spent.append(spent.pop() - now()))
        last.register_forward_hook(lambda *_: spent.append(spent.pop() + now()))
    model.register_forward_hook(lambda *_: seconds.append(spent[0]))
    return seconds


def _token_ms(seconds: list[float]) -> list[float]:
    """What was watched, by token after the prompt."""
    return [1e3 * (after - before) for before, after in pairwise(seconds)]


def _reference(setup: Setup, kept: int) -> tuple[list[int], Tensor]:
    """What the dense model wrote, as many tokens as are asked for, and the logits that chose the first of them."""
    with safe_open(Path(setup.folder) / LOGITS, "pt") as file:
        return file.get_tensor("tokens").tolist()[: setup.tokens], file.get_slice("logits")[:kept]


@dataclass(frozen=True)
class Rows:
    """Rows of an FFN that are multiplied: at_a_time, and the sum over a token."""

    at_a_time: int
    a_token: int

    @classmethod
    def of(cls, engine: Engine) -> Rows:
        """Those of an engine that decoded."""
        if not engine.stage.predictor:
            return cls(engine.stream.rows, engine.store.layers * engine.store.shape.neurons)
        return cls(max(1, int(np.mean(engine.rows_held))), sum(engine.rows_held))


@dataclass(frozen=True)
class Timed:
    """What remains of a stage's model when its memory is free again."""

    cost: TokenCost
    decoding: Decoding
    rows: Rows
    linear_ms: float
    base_rss_bytes: int
    peak_rss_bytes: int
    host_bytes: int
    device_peak_bytes: int | None


def measure_stage(task: StageTask, store: Store) -> StageRun:
    """One stage: times and counts with the trained predictor, after which it must be exact with the oracle.

    Only one model is in memory at a time, and none while the processor's speed is measured.
    """
    stage, shape, device = LADDER[NAMES[task.stage]], store.shape, _device(task)
    tokens, logits = _reference(task.setup, task.check if stage.predictor else task.setup.tokens)
    new_model = partial(
        load, store, dram_budget=task.budget, stage=task.stage, window=task.window, verify_reads=task.verify_reads,
        device=task.setup.device,
    )  # fmt: skip
    timed = _time_stage(partial(new_model, predictor=task.predictor), task, tokens)
    free()
    exact: Exactness | None = None
    if not stage.predictor:  # every weight took part when it was timed, so that was the exact run already
        who = f"stage {task.stage} ({NAMES[task.stage]})"
        exact = compare_logits(timed.decoding.logits, logits, store.dtype_name, who)
    elif task.check:
        exact = exactness(new_model(predictor="oracle"), task.stage, task.setup.prompt, tokens[: task.check], logits)
        free()
    window = task.window if stage.window and isinstance(task.window, int) else 1  # "auto" needs a report anyway
    fires = _fires(store, timed.rows.at_a_time, window) if stage.predictor else None
    speed = product_speed(shape, store.layers, store.dtype, timed.rows.at_a_time, fires, store.activation, device)
    return StageRun(
        stage=task.stage, name=NAMES[task.stage], agreement=agreement(timed.decoding.chosen, tokens),
        tokens_equal=exact.tokens_equal if exact else None, max_logit_error=exact.max_logit_error if exact else None,
        prompt_ms=timed.decoding.prompt_ms, linear_ms=timed.linear_ms, base_rss_bytes=timed.base_rss_bytes,
        peak_rss_bytes=timed.peak_rss_bytes, product_bytes=float(timed.rows.a_token * shape.neuron_bytes),
        product_bytes_a_second=speed,
        copy_bytes_a_second=copy_speed(timed.rows.at_a_time * shape.record_bytes),
        host_bytes=timed.host_bytes, device_peak_bytes=timed.device_peak_bytes,
        bus_bytes_a_second=bus_speed(device) if task.setup.device != "cpu" else None, **vars(timed.cost),
    )  # fmt: skip


def _time_stage(new_model: Callable[[], PreTrainedModel], task: StageTask, tokens: list[int]) -> Timed:
    """Decode with the predictor that the task asks for."""
    device, base, kept = (
        _device(task),
        memory_status("VmRSS"),
        0 if LADDER[NAMES[task.stage]].predictor else task.setup.tokens,
    )
    forget_peak()
    forget_device_peak(device)
    model = new_model()
    on_cpu, kinds = device.type == "cpu", (nn.Linear, Int8Linear)
    linears = [(part, part) for part in model.modules() if isinstance(part, kinds) and on_cpu]
    linear_seconds = _watch(model, linears, device)
    decoding = forced(model, task.setup.prompt, tokens, kept)
    peak, linear_ms = memory_status("VmHWM"), float(np.median(_token_ms(linear_seconds)[WARM_UP:]))
    return Timed(
        per_token(model.flash), decoding, Rows.of(model.flash), linear_ms, base, peak, model.flash.budget.host,
        device_peak(device),
    )  # fmt: skip


def _fires(store: Store, rows: int, window: int) -> float:
    """The share of the rows in DRAM that fires, because the product reads the down columns of no others."""
    if not (store.path / PREDICTOR).exists():
        return 1 / window
    reports = PredictorSet.load(store).reports
    return float(np.mean([report.active for report in reports])) * store.shape.neurons / rows


def measure_peer(task: PeerTask, store: Store) -> PeerCost:
    """One peer, which must be exact where it has the same weights: times, and what the drive gave for each token."""
    setup, device = task.setup, _device(task)
    tokens, logits = _reference(setup, setup.tokens)
    forget_peak()
    forget_device_peak(device)
    peer = PEERS[task.peer]
    model = peer.load(store, Path(setup.folder) / CHECKPOINT, device)
    before = bytes_from_drive()
    timed = peer.decode(model, setup.prompt, tokens)
    nbytes = (bytes_from_drive() - before) / len(tokens)  # the prompt's call needs each weight once too
    if store.quantized:  # whose weights peers round once more
        exact = compared(timed.logits, logits)
    else:
        exact = compare_logits(timed.logits, logits, store.dtype_name, task.peer)
    return PeerCost(
        prompt_ms=timed.prompt_ms, total_ms=float(np.median(timed.token_ms[WARM_UP:])), bytes_per_token=nbytes,
        peak_rss_bytes=memory_status("VmHWM"), device_peak_bytes=device_peak(device),
        agreement=agreement(timed.chosen, tokens), **vars(exact),
    )  # fmt: skip


MEASURE: dict[type[Task[Any]], Callable[[Any, Store], Record]] = {
    IdleTask: measure_idle, DenseTask: measure_dense, StageTask: measure_stage, PeerTask: measure_peer,
}  # fmt: skip


def main() -> None:
    """Read a task, measure, print the answer; errors that flashlite foresees are printed as JSON too."""
    torch.set_grad_enabled(False)
    task = read_task(Path(sys.argv[1]))
    try:
        store = Store(task.setup.store)
        limit(device := _device(task), task.setup.device_bytes)
        warm_up(store, task.setup.prompt, device)
        answer = MEASURE[type(task)](task, store).to_json()
    except (FlashliteError, NotImplementedError) as error:  # NotImplementedError: a stub of the course
        answer = {"error": str(error)}
    except torch.OutOfMemoryError as error:
        answer = {"out_of_memory": str(error).partition("\n")[0]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
