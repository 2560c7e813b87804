"""The process in which an entry runs: `python -m flashlite.contest.child FILE LIMITS`.

It hears of one token at a time and answers, so it can't know the future. It doesn't count, so it can't forge a score.
LIMITS are in force before anything of the student's is imported; what the file prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from flashlite.contest import traces, wire
from flashlite.course.limits import Limits
from flashlite.course.plug import Plug, load
from flashlite.engine.policies.rules import Change, Foul, Token, check_order, indices
from flashlite.errors import FlashliteError

Answer = dict[str, np.ndarray]


class Entry:
    """A student's file, and the policies that it has made. file: where it is."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._module: ModuleType | None = None
        self._policies: dict[int, Any] = {}
        self._neurons: dict[int, int] = {}

    def _find(self, name: str) -> Any:
        if self._module is None:
            self._module = load(Plug(str(self._file)))
        if (found := getattr(self._module, name, None)) is None:
            raise FlashliteError(f"{self._file.name} defines no {name}: restore it from the file that you were given")
        return found

    def make(self, facts: Mapping[str, Any], arrays: Answer) -> Answer:
        """Make the policy of a layer for a new text. facts: layer, neurons, capacity, and past, files to learn from."""
        layer, neurons = facts["layer"], facts["neurons"]
        traces.train_on(list(map(Path, facts["past"])))
        self._neurons[layer] = neurons
        self._policies[layer] = self._find("Policy")(layer, neurons, facts["capacity"])
        return {}

    def step(self, facts: Mapping[str, Any], arrays: Answer) -> Answer:
        """Ask the policy of a layer. arrays: needed and scores of the token."""
        layer = facts["layer"]
        change = self._policies[layer].step(Token(arrays["needed"], lambda: arrays["scores"]))
        if not isinstance(change, Change):
            raise Foul(f"step returns {type(change).__name__}: return a Change, such as Change(drop=...)")
        neurons = self._neurons[layer]
        return {name: indices(getattr(change, name), name, neurons) for name in ("drop", "load")}

    def order(self, facts: Mapping[str, Any], arrays: Answer) -> Answer:
        """Ask for the order of a layer. facts: layer, neurons, and past, files to learn from."""
        traces.train_on(list(map(Path, facts["past"])))
        layer, neurons = facts["layer"], facts["neurons"]
        order = self._find("order")(layer, neurons, traces.past(layer, neurons))
        return {"order": check_order(order, layer, neurons)}


def fault(error: BaseException, file: Path, limits: Limits) -> str:
    """What an exception says, in one line, with the student's line that it comes from."""
    if isinstance(error, FlashliteError):
        return str(error)
    place = ""
    if isinstance(error, SyntaxError):
        place = f"{file.name}:{error.lineno}: {(error.text or '').strip()}  → "
    elif frames := [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]:
        place = f"{file.name}:{frames[-1].lineno}: {frames[-1].line}  → "
    if (limit := limits.exceeded(error)) is not None:
        return f"{place}{limit}"
    return f"{place}{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def main() -> None:
    """Answer until nobody asks any more."""
    file, limits = Path(sys.argv[1]), Limits(**json.loads(sys.argv[2]))
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0), os.dup2(nowhere, 1)
    limits.apply()
    entry = Entry(file)
    acts: dict[str, Callable[[Mapping[str, Any], Answer], Answer]] = {
        "make": entry.make, "step": entry.step, "order": entry.order,
    }  # fmt: skip
    while True:
        try:
            facts, arrays = wire.receive(questions)
        except wire.Broken:
            return
        try:
            wire.send(answers, {}, **acts[facts["act"]](facts, arrays))
        except BaseException as error:
            wire.send(answers, {"error": fault(error, file, limits)})


if __name__ == "__main__":
    main()
