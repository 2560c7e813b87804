"""The ladder: each stage differs in one field from the stage before. (Paper: table 2)"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flashlite.arguments import STAGES as NAMES
from flashlite.engine.early import EarlyFFN
from flashlite.engine.ffn import FlashFFN
from flashlite.engine.overlap import OverlappedFFN
from flashlite.engine.pool import NeuronMemory, Pool, RebuiltMatrix


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

LADDER = dict(zip(NAMES, (NAIVE, RESIDENT, PREDICTOR, WINDOW, BUNDLE, POOL, OVERLAP), strict=True))


def stage_for(stage: Stage, parallel: bool) -> Stage:
    """A stage as it runs in a family. parallel: whether a layer knows its FFN's input before it attends, so that what
    stage 6 would guess can be known."""
    return replace(stage, ffn=EarlyFFN) if parallel and stage.ffn is OverlappedFFN else stage
