"""The ladder: each stage differs in one field from the stage before. (Paper: table 2)"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flashlite.engine.ffn import FlashFFN
from flashlite.engine.overlap import OverlappedFFN
from flashlite.engine.pool import NeuronMemory, Pool, RebuiltMatrix
from flashlite.errors import FlashliteError


@dataclass(frozen=True)
class Stage:
    """How an engine runs a model; the defaults are naive loading."""

    resident: bool = False  # embeddings and attention stay in DRAM
    predictor: bool = False  # only neurons predicted active are read
    window: int = 0  # neurons of this many tokens, the last ones, stay in DRAM
    layout: str = "split"  # how a neuron lies on flash
    memory: type[NeuronMemory] = RebuiltMatrix  # how neurons are kept in DRAM
    ffn: type[FlashFFN] = FlashFFN  # when neurons are read: when they are needed, or early


NAIVE = Stage()
RESIDENT = replace(NAIVE, resident=True)
PREDICTOR = replace(RESIDENT, predictor=True)
WINDOW = replace(PREDICTOR, window=5)
BUNDLE = replace(WINDOW, layout="bundled")
POOL = replace(BUNDLE, memory=Pool)
OVERLAP = replace(POOL, ffn=OverlappedFFN)  # beyond the paper

LADDER = {
    "naive": NAIVE, "resident": RESIDENT, "predictor": PREDICTOR, "window": WINDOW, "bundle": BUNDLE, "pool": POOL,
    "overlap": OVERLAP,
}  # fmt: skip
NAMES = tuple(LADDER)
LAST = len(LADDER) - 1


def stage_number(stage: int | str) -> int:
    """A stage by number or name. Raises FlashliteError if there is none."""
    if isinstance(stage, str) and stage in LADDER:
        return NAMES.index(stage)
    if isinstance(stage, int) and 0 <= stage <= LAST:
        return stage
    raise FlashliteError(f"unknown stage {stage!r}: choose 0 to {LAST}, or {', '.join(NAMES)}")


def parse_stages(text: str) -> list[int]:
    """Numbers of stages in "0-6" or "0,3,5". Raises FlashliteError if malformed."""
    first, dash, last = text.partition("-")
    try:
        numbers = list(range(int(first), int(last) + 1)) if dash else [int(part) for part in text.split(",")]
    except ValueError:
        raise FlashliteError(f"stages {text!r} are not understood: write 0-6 or 0,3,5") from None
    if not numbers:
        raise FlashliteError(f"stages {text!r} name none")
    return [stage_number(number) for number in numbers]
