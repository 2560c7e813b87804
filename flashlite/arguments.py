"""What arguments may say: stages, dtypes, layouts, budgets, stores.

They are read apart from the code behind them, which needs torch and may be an exercise, so that what is wrong is
refused at once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, get_args

from flashlite.errors import BudgetError, FlashliteError

Dtype = Literal["fp32", "bf16", "fp16", "int8"]
PredictorKind = Literal["auto", "trained", "copy", "oracle"]
DTYPE_NAMES: tuple[str, ...] = get_args(Dtype)
LAYOUTS = ("split", "bundled")
STAGES = ("naive", "resident", "predictor", "window", "bundle", "pool", "overlap")  # the ladder, see engine/stages.py
LAST_STAGE = len(STAGES) - 1
POLICY_STAGES = (  # what is said where a policy can't run
    "a policy of your own runs at stages 3 to 5: stage 6 guesses and takes guesses back, which a policy can't, so "
    "leave stage 6 out"
)
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
BUNDLED_NAMES = ("opt-mini", "falcon-mini", "falcon-mini-gelu")  # they come along; the last is to be relufied
MANIFEST = "manifest.json"  # the file that makes a folder a store
WEIGHT_FILES = (  # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def is_store(path: Path | str) -> bool:
    """Whether a folder is a store, and not a checkpoint that happens to have a file of the manifest's name."""
    weights = (Path(path) / name for name in WEIGHT_FILES)
    return os.path.isfile(Path(path) / MANIFEST) and not any(map(os.path.isfile, weights))


def stage_number(stage: int | str) -> int:
    """A stage's number, by its number or its name, as text too. Raises FlashliteError if there is no such stage."""
    if isinstance(stage, str) and stage in STAGES:
        return STAGES.index(stage)
    if isinstance(stage, str) and re.fullmatch(r"\d{1,18}", stage):
        return stage_number(int(stage))
    if isinstance(stage, int) and 0 <= stage <= LAST_STAGE:
        return stage
    raise FlashliteError(f"unknown stage {stage!r:.40}: choose 0 to {LAST_STAGE}, or {', '.join(STAGES)}")


def parse_stages(text: str) -> list[int]:
    """The numbers of the stages in "0-6" or "0,3,5"; each may be named too. Raises FlashliteError if there are none."""
    first, dash, last = text.partition("-")
    parts = [part.strip() for part in ([first, last] if dash else text.split(","))]
    if not all(part in STAGES or part.isdecimal() for part in parts):
        raise FlashliteError(f"stages {text!r} are not understood: write 0-6 or 0,3,5, or names: {', '.join(STAGES)}")
    numbers = [stage_number(part) for part in parts]
    if dash and numbers[0] > numbers[1]:
        raise FlashliteError(f"stages {text!r} are none: write the lower number first")
    return list(range(numbers[0], numbers[1] + 1)) if dash else numbers


def parse_window(text: str) -> int | str:
    """A window's tokens, or "auto" for as many as a budget has room for. Raises FlashliteError if the text is
    malformed."""
    return check_window(int(text) if re.fullmatch(r"-?\d{1,9}", text) else text)


def check_window(window: int | str) -> int | str:
    """The window itself. Raises FlashliteError if it is neither a number of tokens nor "auto"."""
    if window != "auto" and (type(window) is not int or window < 1):
        raise FlashliteError(f"a window of {window} tokens is not understood: write a whole number from 1, or 'auto'")
    return window


def check_device(device: str) -> str:
    """The device itself. Raises FlashliteError if it is not the name of one."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", device):
        raise FlashliteError(f"device {device!r:.80} is not known: write cpu, cuda, or cuda:1 for the second GPU")
    return device


def parse_budget(budget: int | float | str, weight_bytes: int) -> int:
    """Bytes meant by a number, "4GiB", or "50%" and 0.5 of the model's weights. Raises BudgetError if malformed."""
    if isinstance(budget, float) and 0 < budget <= 1:
        return int(budget * weight_bytes)
    if isinstance(budget, int) and not isinstance(budget, bool):
        return budget
    match = isinstance(budget, str) and re.fullmatch(r"\s*(\d{1,20}(?:\.\d+)?)\s*(%|[kmg]?i?b|)\s*", budget.lower())
    if not match or match[2] not in {"%", *UNITS}:
        raise BudgetError(f'budget {budget!r} is not understood: write bytes, "4GiB", "500MB", "50%" or 0.5')
    return int(float(match[1]) * (weight_bytes / 100 if match[2] == "%" else UNITS[match[2]]))
