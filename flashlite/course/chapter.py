"""What every chapter's notebook begins and ends with: the machine, the ladder's changed line, gains, exercises.

store = chapter.begin(3)
chapter.change(3)
chapter.gain(flashlite.bench.compare.compare(store, [2, 3]))
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import fields

import torch
from IPython.display import Markdown
from torch import Tensor

from flashlite.bench.machine import drive, host
from flashlite.bench.result import Result
from flashlite.bench.row import StageRow
from flashlite.bench.tables import gain_markdown
from flashlite.course import paper
from flashlite.course.manifest import Exercise, find_course
from flashlite.course.yours import run_yours
from flashlite.engine import stages
from flashlite.storage.find import open_model
from flashlite.storage.store import Store
from flashlite.storage.tokenizer import token_windows
from flashlite.training.corpus import corpus

__all__ = [
    "begin",
    "change",
    "exercises",
    "gain",
    "held_out",
    "in_dtype",
    "result",
    "run_yours",
    "table",
    "table_3",
    "training_text",
]
MODEL = "FLASHLITE_MODEL"


def begin(number: int) -> Store:
    """Name the machine, the drive and the model, and open the model: opt-mini, or what $FLASHLITE_MODEL names."""
    torch.set_grad_enabled(False)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    store = open_model(os.environ.get(MODEL, "opt-mini"))
    machine, where = host(), drive(store.path / "manifest.json")
    print(
        f"chapter {number} on {machine.processor}, {machine.cores} cores, "
        f"{machine.memory_bytes / 2**30:.0f} GiB, drive {where.device} (direct reads on a grid of "
        f"{where.alignment} bytes)\n"
        f"{machine.system.split()[0]}, Python {machine.python}, torch {machine.torch}, "
        f"transformers {machine.transformers}\n"
        f"{store.manifest['name']} {store.dtype_name}: {store.layers} layers, d_model {store.shape.d_model}, "
        f"{store.shape.neurons} neurons a layer, {store.weight_bytes / 1e6:.1f} MB of weights"
    )
    return store


def in_dtype(dtype: str) -> Store:
    """The chapter's model in another dtype, packed if need be. Raises FlashliteError."""
    return open_model(os.environ.get(MODEL, "opt-mini"), dtype)


def held_out(store: Store, tokens: int) -> Tensor:
    """Text that neither opt-mini nor its predictors were trained on: [windows, length] token ids."""
    return token_windows(corpus(held_out=True), store, tokens)


def training_text(store: Store, tokens: int) -> Tensor:
    """Text of the other side of the split: [windows, length] token ids."""
    return token_windows(corpus(held_out=False), store, tokens)


def change(stage: int) -> Markdown:
    """What a stage changes in the ladder, read from the code of flashlite/engine/stages.py."""
    source = inspect.getsource(stages)
    name = stages.NAMES[stage]
    line = next(line for line in source.splitlines() if re.match(rf"{name.upper()} = ", line))
    if stage == 0:
        return Markdown(f"```python\n{line}   # every field at its default\n```")
    before, after = stages.LADDER[stages.NAMES[stage - 1]], stages.LADDER[name]
    changed = next(f.name for f in fields(after) if getattr(before, f.name) != getattr(after, f.name))
    meaning = next(line.split("#")[1].strip() for line in source.splitlines() if line.startswith(f"    {changed}:"))
    old, new = (getattr(getattr(s, changed), "__name__", getattr(s, changed)) for s in (before, after))
    columns = ["field", f"stage {stage - 1} {stages.NAMES[stage - 1]}", f"stage {stage} {name}", "meaning"]
    return table(columns, [[f"`{changed}`", f"`{old}`", f"`{new}`", meaning]], note=f"```python\n{line}\n```")


def result(name: str) -> Result | None:
    """A result of `flashlite bench --json` that this clone keeps in results/, None if it has none of that name."""
    path = find_course().root / "results" / f"{name}.json"
    return Result.from_json(json.loads(path.read_text())) if path.exists() else None


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> Markdown:
    """A table of rows; numbers that aren't whole get two decimals. note: a line above it."""
    lines = [list(columns), ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return Markdown(f"{note}\n\n{body}" if note else body)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def table_3() -> Markdown:
    """The paper's table 3, each row beside what `results/` holds of a model of this shape."""
    rows = []
    for theirs in paper.TABLE_3:
        model, _, backend = theirs.model.partition(" ")
        ours = _measured(model, theirs.system) if backend == "CPU" else "–"
        rows.append([theirs.model, theirs.system, _latency(theirs), ours])
    return table(["model", "system", "paper: I/O + memory + compute, ms", "here: I/O + memory + compute, ms"], rows)


def _measured(model: str, system: str) -> str:
    """What a stage took: the paper's system with all techniques is stage 5, pool."""
    found = result(f"bench-{paper.MEASURED[model]}-bf16")
    if found is None:
        return "not measured yet"
    name = {"all": "pool"}.get(system, system)
    return next((_latency(row) for row in found.stages if row.name == name), "not measured yet")


def _latency(row: paper.Latency | StageRow) -> str:
    return f"{row.io_ms:.0f} + {row.memory_ms:.0f} + {row.compute_ms:.0f} = **{row.total_ms:,.0f}**"


def gain(rows: Sequence[StageRow]) -> Markdown:
    """Two stages of `compare` beside each other, and the second in parts of the first."""
    return Markdown(gain_markdown(rows))


def exercises(number: int) -> Markdown:
    """The exercises of a chapter, each with its task folded away."""
    course = find_course()
    chosen = [e for e in course.exercises if e.chapter == number]
    minutes, points = sum(e.minutes for e in chosen), sum(e.points for e in chosen)
    count = "One exercise" if len(chosen) == 1 else f"{len(chosen)} exercises"
    if warm_ups := [e.id for e in chosen if not e.points]:
        count += f" ({' and '.join(warm_ups)} to warm up, without points)"
    apart = " of their own, beside the course's hundred" if number in course.electives else ""
    head = f"{count}, {points} points{apart}, about {minutes} minutes. Check with `flashlite grade {number}`. "
    head += "What a task calls above or below is so in its file."
    return Markdown("\n\n".join([head, *map(_exercise, chosen)]))


def _exercise(e: Exercise) -> str:
    stars = "★" * e.difficulty + "☆" * (3 - e.difficulty)
    at_hand = f"\n\nat hand: {e.provided}" if e.provided else ""
    lines = f"{e.task.strip()}\n\nexample: {e.example.strip()}{at_hand}".splitlines()
    wrapped = "\n".join(textwrap.fill(line, 100, subsequent_indent=_indent(line)) for line in lines)
    return (
        f"<details><summary><b>{e.id} {e.title}</b> · <code>exercises/{e.file}</code>, <code>{e.qualname}</code> · "
        f"{e.worth} · {e.minutes} min · {stars}</summary>\n\n```text\n{wrapped}\n```\n\n</details>"
    )


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
