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


@dataclass(frozen=True)
class Relufied:
    """A model that was trained on with ReLU: 10^9 tokens, zeros in its FFN, and the paper or card that says so.

    tokens: None where the source doesn't say it
    zeros: share of its activations, 0 to 1
    before, after: mean accuracy of the original and of the relufied model, in per cent; None where it isn't said
    """

    model: str
    tokens: float | None
    zeros: float
    source: str
    before: float | None = None
    after: float | None = None


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

MEASURED = {  # what `flashlite bench` calls the models of table 3
    "OPT-6.7B": "opt-6.7b", "Falcon-7B": "falcon-7b", "Persimmon-8B": "persimmon-8b", "Phi-2": "phi-2",
    "Llama-2-7B": "llama-2-7b",
}  # fmt: skip

MIRZADEH = "[ReLU strikes back](https://arxiv.org/abs/2310.04564)"
RELUFIED = (
    Relufied("Falcon-7B, ReLU", 30, 0.94, MIRZADEH, 66.8, 65.2),
    Relufied("Llama-7B, ReLU", 30, 0.62, MIRZADEH, 68.4, 67.1),
    Relufied("ReluLLaMA-7B", None, 0.67, "[its card](https://huggingface.co/SparseLLM/ReluLLaMA-7B)"),
    Relufied("ProSparse-7B, FATReLU", 34.6, 0.89, "[ProSparse](https://arxiv.org/abs/2402.13516)"),
    Relufied("TurboSparse, dReLU", 150, 0.90, "[TurboSparse](https://arxiv.org/abs/2406.05955)"),
)

ACTIVE = {"layer 1": 0.0156, "layer 16": 0.0266, "layer 32": 0.0536, "mean": 0.033}  # of OPT-6.7B, section 3.1
FALSE_NEGATIVES, FALSE_POSITIVES = 0.05, 0.07  # of OPT-6.7B's predictor
PREDICTED_OVER_ACTIVE = 3.0  # how many times the truly active set it predicts
WINDOW, NEW_SHARE, CACHED_SHARE, NEEDED_SHARE = 5, 0.024, 0.24, 0.10  # of the FFN, a token
DRAFT = 4  # tokens drafted at a time
SPECULATIVE_MS = {"without": 84.0, "with": 60.0}  # OPT-6.7B on the GPU
