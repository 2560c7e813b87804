"""How far a training is: a bar where there is a terminal, and lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flashlite.cli.options import notes, show_progress

if TYPE_CHECKING:
    from flashlite.training.train_model import Point

SILENCE = 30  # seconds
Tell = Callable[[int, float], None]
Measured = Callable[["Point"], None]


@contextmanager
def training_progress(shown: bool, steps: int) -> Iterator[tuple[Tell, Measured]]:
    """What is to be told of each step, which moves a bar or becomes a line, and of each measurement, a line.

    shown: whether this process tells it
    steps: of the whole training
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )  # fmt: skip
    lines = StepLines(steps) if shown and not notes.is_terminal else None
    with Progress(*columns, console=notes, disable=not (shown and notes.is_terminal), transient=True) as bar:
        task = bar.add_task("relufy", total=steps, loss=float("nan"))

        def tell(step: int, loss: float) -> None:
            bar.update(task, completed=step, loss=loss)
            if lines and (line := lines.after(step, loss)):
                show_progress(line)

        def measured(point: Point) -> None:
            if shown:
                zeros = sum(point.zeros) / len(point.zeros)
                figures = f"held-out perplexity {point.perplexity:.3f}, zeros {zeros:.1%}"
                show_progress(f"step {point.step} of {steps}: {figures}")

        yield tell, measured


class StepLines:
    """A training's steps as lines, where there is no terminal for a bar: one after the first step, and then so many
    that a reader never waits longer than SILENCE for the next one, unless a step takes longer.

    steps: of the whole training
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._first: tuple[int, float] | None = None  # the step that was told first, and when
        self._told = self._last = 0.0  # when the last line was told, and when the last step ended

    def after(self, step: int, loss: float) -> str | None:
        """The line after a step, if it is time for one. step: its number, from 1."""
        now, line = time.monotonic(), f"step {step} of {self._steps}: loss {loss:.3f}"
        if self._first is None:
            self._first, self._told, self._last = (step, now), now, now
            return line
        began, self._last = self._last, now
        if now - self._told + now - began < SILENCE:  # the next step, if it takes as long, ends in time
            return None
        self._told = now
        from flashlite.bench.process.run import spoken_time

        left = (now - self._first[1]) / (step - self._first[0]) * (self._steps - step)
        return f"{line}, {spoken_time(left)} left"
