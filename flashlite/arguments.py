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

Dtype = Literal["fp32", "bf16", "fp16"]
PredictorKind = Literal["trained", "oracle"]
DTYPE_NAMES: tuple[str, ...] = get_args(Dtype)
LAYOUTS = ("split", "bundled")
STAGES = ("naive", "resident", "predictor", "window", "bundle", "pool", "overlap")  # the ladder, see engine/stages.py
LAST_STAGE = len(STAGES) - 1
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MANIFEST = "manifest.json"  # the file that makes a folder a store


def is_store(path: Path | str) -> bool:
    """Whether a folder is a store."""
    return os.path.isfile(Path(path) / MANIFEST)


def stage_number(stage: int | str) -> int:
    """A stage's number, by its number or its name. Raises FlashliteError if there is no such stage."""
    if isinstance(stage, str) and stage in STAGES:
        return STAGES.index(stage)
    if isinstance(stage, int) and 0 <= stage <= LAST_STAGE:
        return stage
    raise FlashliteError(f"unknown stage {stage!r}: choose 0 to {LAST_STAGE}, or {', '.join(STAGES)}")


def parse_stages(text: str) -> list[int]:
    """The numbers of the stages in "0-6" or "0,3,5". Raises FlashliteError if the text is malformed."""
    first, dash, last = text.partition("-")
    try:
        numbers = [stage_number(int(part)) for part in ([first, last] if dash else text.split(","))]
    except ValueError:
        raise FlashliteError(f"stages {text!r} are not understood: write 0-6 or 0,3,5") from None
    if dash and numbers[0] > numbers[1]:
        raise FlashliteError(f"stages {text!r} are none: write the lower number first")
    return list(range(numbers[0], numbers[1] + 1)) if dash else numbers


def parse_budget(budget: int | str, weight_bytes: int) -> int:
    """Bytes meant by a number, "4GiB", "500 MB" or "50%" of the model's weights. Raises BudgetError if malformed."""
    if isinstance(budget, int) and not isinstance(budget, bool):
        return budget
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d+)?)\s*(%|[kmg]?i?b|)\s*", str(budget).lower())
    if match is None or match[2] not in {"%", *UNITS}:
        raise BudgetError(f'budget {budget!r} is not understood: write bytes, "4GiB", "500MB" or "50%"')
    return int(float(match[1]) * (weight_bytes / 100 if match[2] == "%" else UNITS[match[2]]))
