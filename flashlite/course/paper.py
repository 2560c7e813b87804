"""Figures of the paper that chapters set beside their own. (Alizadeh et al., arXiv 2312.11514)"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Technique:
    """A row of table 2, OPT-6.7B in 16 bits on an M1 Max: DRAM and reads for a token in GB, GB/s, ms of I/O."""

    stage: str
    dram_gb: float
    token_gb: float
    gb_s: float
    io_ms: float


@dataclass(frozen=True)
class Latency:
    """A row of table 3: ms of one token."""

    model: str
    system: str
    io_ms: float
    memory_ms: float
    compute_ms: float

    @property
    def total_ms(self) -> float:
        """The sum of the parts."""
        return self.io_ms + self.memory_ms + self.compute_ms


TABLE_2 = (
    Technique("naive", 0.0, 13.4, 6.10, 2196),
    Technique("resident", 6.7, 6.7, 6.10, 1090),
    Technique("predictor", 4.8, 0.9, 1.25, 738),
    Technique("window", 6.5, 0.2, 1.25, 164),
    Technique("bundle", 6.5, 0.2, 2.25, 87),
)

TABLE_3 = (
    Latency("OPT-6.7B CPU", "naive", 2196, 0, 986),
    Latency("OPT-6.7B CPU", "all", 105, 58, 506),
    Latency("OPT-6.7B Metal M1", "naive", 2196, 0, 193),
    Latency("OPT-6.7B Metal M1", "all", 92, 35, 438),
    Latency("OPT-6.7B GPU", "naive", 2196, 0, 22),
    Latency("OPT-6.7B GPU", "all", 30, 34, 20),
    Latency("Falcon-7B CPU", "naive", 2295, 0, 800),
    Latency("Falcon-7B CPU", "resident", 1147, 0, 800),
    Latency("Falcon-7B CPU", "all", 161, 92, 453),
    Latency("Persimmon-8B CPU", "naive", 2622, 0, 1184),
    Latency("Persimmon-8B CPU", "resident", 1311, 0, 1184),
    Latency("Persimmon-8B CPU", "all", 283, 98, 660),
    Latency("Phi-2 CPU", "naive", 885, 0, 402),
    Latency("Phi-2 CPU", "resident", 309, 0, 402),
    Latency("Phi-2 CPU", "all", 211, 76, 259),
    Latency("Llama-2-7B CPU", "naive", 2166, 0, 929),
    Latency("Llama-2-7B CPU", "resident", 974, 0, 929),
    Latency("Llama-2-7B CPU", "all", 279, 152, 563),
)

ACTIVE = {"layer 1": 0.0156, "layer 16": 0.0266, "layer 32": 0.0536, "mean": 0.033}  # of OPT-6.7B, section 3.1
FALSE_NEGATIVES, FALSE_POSITIVES = 0.05, 0.07  # of OPT-6.7B's predictor
PREDICTED_OVER_ACTIVE = 3.0  # how many times the truly active set it predicts
WINDOW, NEW_SHARE, CACHED_SHARE, NEEDED_SHARE = 5, 0.024, 0.24, 0.10  # of the FFN, a token
DRAFT = 4  # tokens drafted at a time
SPECULATIVE_MS = {"without": 84.0, "with": 60.0}  # OPT-6.7B on the GPU
