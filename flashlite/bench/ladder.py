"""The ladder measured: every stage in a fresh process, in balanced order, beside what it must cost by the model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flashlite.bench.cap import memory_cap
from flashlite.bench.cost import Speeds, Work, predicted_ms
from flashlite.bench.machine import drive, host
from flashlite.bench.measure_one import CHECKPOINT, Task
from flashlite.bench.peers import PEERS, WEIGHTS, check_installed, export
from flashlite.drive.probe import DEPTHS, SIZES, Curve, probe_file, random_mb_s
from flashlite.engine.budget import parse_budget
from flashlite.engine.ffn import FlashFFN
from flashlite.engine.stages import LADDER, NAMES
from flashlite.errors import FlashliteError, KilledError
from flashlite.storage.safetensors_file import drop_from_cache
from flashlite.storage.store import Store, ffn_file
from flashlite.storage.tokenizer import first_token, load_tokenizer

PROMPT = '''def read_table(path, separator=","):
    """Read a table of numbers from a text file.

    Lines that start with a hash are comments and are skipped.
    """
    rows = []
    with open(path, encoding="utf-8") as handle:
        for line in handle:
'''
Measured = dict[int, list[dict[str, Any]]]  # by stage, the results of its rounds
Result = TypeVar("Result")
WORKER = (sys.executable, "-m", "flashlite.bench.measure_one")
DEPTH = 128
WORK_BYTES = 4 * 2**20
INDEX_BYTES = 22  # of a neuron, in window and pool
PROMPT_COPIES = 32  # of a prompt's hidden states, in the activations of a layer
PAGE_TABLE_SHARE = 8 / 4096


def prompt_ids(store: Store, length: int) -> list[int]:
    """The benchmark's prompt: the first tokens of a piece of Python. Raises FlashliteError if it can't be so long."""
    if length >= store.config.max_position_embeddings:
        raise FlashliteError(f"a prompt of {length} tokens exceeds the model's {store.config.max_position_embeddings}")
    ids = load_tokenizer(store)(PROMPT, add_special_tokens=False)["input_ids"]
    return [*first_token(store), *(ids * (length // len(ids) + 1))][:length]


def run_worker(task: Task, command: Sequence[str] = WORKER) -> dict[str, Any]:
    """Measure in a fresh process. Raises KilledError if the system kills it, else FlashliteError with what it said if
    it fails."""
    path = Path(task.folder) / "task.json"
    path.write_text(json.dumps(asdict(task)))
    done = subprocess.run([*command, str(path)], capture_output=True, text=True)
    try:
        result = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        ended = f"the measuring process ended with code {done.returncode}"
        if done.returncode == -signal.SIGKILL:
            raise KilledError(f"{ended}: killed for want of memory") from None
        raise FlashliteError(f"{ended}: {_last_words(done.stderr)}") from None
    if "error" in result:
        raise FlashliteError(result["error"])
    return result


def _last_words(stderr: str) -> str:
    """The last line of a traceback, with the place in code outside of libraries that it comes from."""
    frames = [line for line in re.findall(r'File "(.+), in', stderr) if "site-packages" not in line]
    place = Path(frames[-1].replace('", line ', ":")).name + ": " if frames else ""
    return place + (stderr.strip().splitlines() or ["no message"])[-1]


def bench(
    store: Store, *, stages: Sequence[int], tokens: int = 64, prompt_tokens: int = 32, budget: int | str = "50%",
    window: int = 5, predictor: str = "trained", rounds: int = 3, capped: bool = False, peers: bool = False,
    slow_tokens: int | None = None, check_tokens: int | None = None, verify_reads: bool = False,
    progress: Callable[[str], None] = lambda line: None, worker: Sequence[str] = WORKER,
) -> dict[str, Any]:  # fmt: skip
    """Measure stages of the ladder. Returns the JSON object that `flashlite bench` prints.

    capped: run every stage under a memory cap of the budget and the base, page cache included; peers: measure what
    people use today as well; slow_tokens: how many tokens where every weight is read for each; check_tokens: how many
    with the oracle; verify_reads: compare what stages read with its checksums; worker: the command that runs one
    measurement; another one may run the engine on somebody else's code.

    Raises FlashliteError, and shows no speed, if a stage doesn't give the dense model's tokens with the oracle.
    """
    if not store.config.max_position_embeddings > prompt_tokens + tokens:
        raise FlashliteError(
            f"{prompt_tokens} + {tokens} tokens exceed {store.config.max_position_embeddings} positions"
        )
    with tempfile.TemporaryDirectory(prefix=".flashlite-bench-", dir=store.path.parent) as folder:
        task = Task(str(store.path), None, prompt_ids(store, prompt_tokens), tokens, folder, budget, window, predictor)
        task = replace(task, verify_reads=verify_reads)
        tasks = _stage_tasks(task, stages, slow_tokens or tokens, check_tokens or tokens)
        rivals = _peer_tasks(store, task, slow_tokens or tokens, progress) if peers else []
        progress("the drive's ceiling")
        path = store.path / ffn_file(store.layouts[-1])
        curve, ceiling = measure_ceiling(store, path)
        progress("dense model")
        dense = run_worker(task)

        def measure(worker: Sequence[str]) -> tuple[Measured, list[dict[str, Any]]]:
            return _measure_rounds(tasks, rounds, progress, worker), measure_peers(rivals, progress, worker)

        if capped:
            measured, cap = _under_cap(store, task, worker, measure)
        else:
            measured, cap = measure(worker), {"bytes": None, "enforced": False}
        again = run_worker(task) if rounds > 1 else dense  # at both ends, so that a drift of the machine shows
        dense |= {key: (dense[key] + again[key]) / 2 for key in ("total_ms", "prompt_ms", "rest_ms")}
    rows = [_row(number, runs, curve, dense, store) for number, runs in measured[0].items()]
    return {
        "model": store.manifest["name"], "planted": "planted" in store.manifest, "dtype": store.dtype_name,
        "weight_bytes": store.weight_bytes, "budget_bytes": parse_budget(budget, store.weight_bytes),
        "memory_cap": cap, "prompt_tokens": prompt_tokens, "new_tokens": tokens, "window": window, "rounds": rounds,
        "host": host(), "drive": drive(path), "ceiling": ceiling, "curve": curve.to_json(),
        "dense": dense, "base": fixed_base(store, [dense, *rows], prompt_tokens, tokens), "stages": rows,
        "peers": measured[1],
    }  # fmt: skip


def _stage_tasks(task: Task, stages: Sequence[int], slow: int, check: int) -> dict[int, Task]:
    """What to measure of each stage, by its number."""
    sparse = {stage: LADDER[NAMES[stage]].predictor for stage in stages}
    return {
        stage: replace(task, stage=stage, tokens=task.tokens if sparse[stage] else slow, check=check)
        for stage in stages
    }  # fmt: skip


def _peer_tasks(store: Store, task: Task, slow: int, progress: Callable[[str], None]) -> list[Task]:
    """What to measure of each peer; the store's weights are written out in the form that peers read."""
    check_installed()
    progress("the same weights as a checkpoint, for the peers")
    export(store, Path(task.folder) / CHECKPOINT)
    return [replace(task, peer=name, tokens=slow) for name in PEERS]


def check_stage(
    store: Store, stage: int, budget: int | str, window: int, worker: Sequence[str], tokens: int = 8
) -> None:
    """Raise FlashliteError unless a stage, run by this command, gives the dense model's tokens with the oracle."""
    with tempfile.TemporaryDirectory(prefix="flashlite-check-") as folder:
        task = Task(str(store.path), None, prompt_ids(store, 32), tokens, folder, budget, window, "oracle")
        run_worker(task)
        run_worker(replace(task, stage=stage, check=tokens), worker)


def _under_cap(
    store: Store, task: Task, worker: Sequence[str], measure: Callable[[Sequence[str]], Result]
) -> tuple[Result, dict[str, Any]]:
    """What `measure` gives under a cap of the budget and what a process needs without any model, counted as the system
    counts it; and what there is to say of the cap."""
    budget = parse_budget(task.budget, store.weight_bytes)
    with memory_cap(2**50) as group:
        idle = run_worker(replace(task, tokens=0), group.wrap(worker))
        base = fixed_base(store, [idle], len(task.prompt), task.tokens)["total"] + int(budget * PAGE_TABLE_SHARE)
        if group.peak_bytes:  # the system counts pages of libraries to whoever read them first
            base += group.peak_bytes - idle["peak_rss_bytes"]
    total = budget + base
    with memory_cap(total) as group:
        measured = measure(group.wrap(worker))
        peak, dense_fits = group.peak_bytes, _survives(task, group.wrap(worker))
    return measured, {
        "bytes": total, "base_bytes": base, "enforced": group.enforced, "how": group.how, "peak_bytes": peak,
        "dense_fits": dense_fits,
    }  # fmt: skip


def _survives(task: Task, worker: Sequence[str]) -> bool:
    """Whether the dense model runs by this command, as it must not under a cap that is worth something."""
    try:
        run_worker(task, worker)
    except KilledError:
        return False
    return True


def fixed_base(store: Store, rows: list[dict[str, Any]], prompt_tokens: int, tokens: int) -> dict[str, int]:
    """What a process needs beyond the budget, in bytes: libraries (measured), KV cache, activations and allocator.

    A prompt's product puts one of attention's matrices into another order first, and the allocator keeps its place.
    """
    shape = store.shape
    libraries = max(row["base_rss_bytes"] for row in rows)
    cache = 2 * store.layers * (prompt_tokens + tokens) * shape.half_bytes
    indices = INDEX_BYTES * store.layers * shape.neurons
    work = WORK_BYTES + indices + (shape.d_model + PROMPT_COPIES * prompt_tokens) * shape.half_bytes
    return {"libraries": libraries, "kv_cache": cache, "work": work, "total": libraries + cache + work}


def measure_ceiling(store: Store, path: Path) -> tuple[Curve, dict[str, Any]]:
    """What the drive gives, measured on the packed model itself."""
    record = store.shape.record_bytes
    curve = probe_file(path, sorted({*SIZES, record}), DEPTHS[::2] + DEPTHS[-1:])
    random = random_mb_s(path, record, DEPTH, np.random.default_rng(0))
    return curve, {
        "record_bytes": record, "depth": DEPTH, "random_mb_s": random, "sequential_mb_s": curve.sequential_mb_s
    }  # fmt: skip


def _measure_rounds(
    tasks: dict[int, Task], rounds: int, progress: Callable[[str], None], worker: Sequence[str]
) -> Measured:
    """Every stage once a round, the order turned round each time, checked for exactness in the first."""
    measured: Measured = {stage: [] for stage in tasks}
    for number in range(rounds):
        for stage in tasks if number % 2 == 0 else reversed(tasks):
            progress(f"round {number + 1} of {rounds}: stage {stage} {NAMES[stage]}")
            task = tasks[stage] if number == 0 else replace(tasks[stage], check=0)
            measured[stage].append(run_worker(task, worker))
    return measured


def measure_peers(tasks: list[Task], progress: Callable[[str], None], worker: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each peer, where `killed` says that the system ended it for want of memory."""
    rows = []
    for task in tasks:
        progress(f"peer: {task.peer}")
        drop_from_cache(Path(task.folder) / CHECKPOINT / WEIGHTS)  # what is cached already counts to nobody's cap
        try:
            rows.append({"name": task.peer, "killed": False, **run_worker(task, worker)})
        except KilledError:
            rows.append({"name": task.peer, "killed": True})
    return rows


def median_run(number: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the runs of a stage the one of median total time. Raises FlashliteError if they read different amounts."""
    if len({run["bytes_per_token"] for run in runs}) > 1:
        raise FlashliteError(f"stage {number} read different amounts in different runs: counts must not vary")
    chosen = sorted(runs, key=lambda run: run["total_ms"])[(len(runs) - 1) // 2]
    return {"stage": number, "name": NAMES[number], **runs[0], **chosen}


def _row(
    number: int, runs: list[dict[str, Any]], curve: Curve, dense: dict[str, Any], store: Store
) -> dict[str, Any]:  # fmt: skip
    """One line of the table: the median round, with the cost model's prediction beside it."""
    row = median_run(number, runs) | {"peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs)}
    stage = LADDER[NAMES[number]]
    copied = 0.0 if stage.memory.spare == 0 or not stage.predictor else row["rows_moved"] * store.shape.record_bytes
    work = Work(
        row["reads_per_token"], row["bytes_per_token"], row["batches_per_token"], copied, row["product_bytes"],
        overlapped=False,
    )  # fmt: skip
    speeds = Speeds(row["product_bytes_a_second"], row["copy_bytes_a_second"], dense["rest_ms"])
    return row | {"predicted_ms": predicted_ms(curve, work, speeds, ahead=stage.ffn is not FlashFFN)}
