# Solutions of exercises 0.2, 0.3: flashlite.bench.cost as the engine runs it.
"""What a token must cost: the paper's model of latency, fed with counts and with this machine's own speeds.

latency = flash I/O + memory management + compute. I/O follows from the drive's curve and the counted reads and bytes,
memory management from the bytes copied, compute from the bytes multiplied. (Paper: section 2.1)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import linear

from flashlite.drive.direct import PAGE, aligned_buffer
from flashlite.drive.probe import Curve
from flashlite.engine.product import ffn_product
from flashlite.engine.stream import relu_ffn
from flashlite.storage.bundle import FFNShape

SAMPLE_BYTES = 2**29  # far more than the processor's caches hold


@dataclass(frozen=True)
class Work:
    """What one token does, counted.

    reads and bytes from flash, in `batches` that each wait for the one before; bytes copied inside DRAM; bytes of FFN
    weights multiplied; overlapped: whether products run while the next read is under way.
    """

    reads: float
    bytes: float
    batches: int
    copied_bytes: float
    product_bytes: float
    overlapped: bool


@dataclass(frozen=True)
class Speeds:
    """What the processor does: FFN products and copies in bytes a second; rest_ms: a token's time without its FFNs."""

    product: float
    copy: float
    rest_ms: float


def io_ms(curve: Curve, reads: float, nbytes: float, batches: int) -> float:
    """Milliseconds that reads take: as many in flight as a batch has, at most what the curve was measured with.

    reads, nbytes: of one token, from flash; batches: in how many parts it waits for them.
    """
    # 0.2  What a drive does depends on two things, the size of a read and how many are in flight, and both follow from
    # counts: bytes / reads, and reads / batches. Layers come one after the other, so reads of different layers can
    # never be in flight together.
    # Usual mistakes: taking all reads of the token to be in flight at once; asking for the throughput of one read of
    # all bytes; seconds instead of milliseconds; dividing by zero for a token that reads nothing.
    if reads == 0:
        return 0.0
    depth = min(curve.depths[-1], max(1.0, reads / batches))
    return 1e3 * nbytes / curve.rate(nbytes / reads, depth)


def token_ms(curve: Curve, work: Work, speeds: Speeds) -> float:
    """Milliseconds that one token must take."""
    # 0.3  Each part is a count divided by a speed that was measured on this machine, so the model has nothing to fit:
    # if a measured token takes longer, something is wasted. Only products can hide behind reads, because copying needs
    # what was read.
    # Usual mistakes: adding up what overlaps; letting copies overlap too; forgetting the rest; mixing seconds and
    # milliseconds.
    io = io_ms(curve, work.reads, work.bytes, work.batches)
    memory = 1e3 * work.copied_bytes / speeds.copy
    product = 1e3 * work.product_bytes / speeds.product
    return speeds.rest_ms + memory + (max(io, product) if work.overlapped else io + product)


def predicted_ms(curve: Curve, work: Work, speeds: Speeds, ahead: bool = False) -> float:
    """`token_ms`, or `overlapped_ms` for reads ahead of their layer, and what batches take to be begun and ended."""
    return (overlapped_ms if ahead else token_ms)(curve, work, speeds) + work.batches * curve.batch_ms


def overlapped_ms(curve: Curve, work: Work, speeds: Speeds) -> float:
    """Milliseconds that a token must take where the drive reads for one layer while the processor computes another:
    as long as the slower of the two, and what is copied."""
    io = io_ms(curve, work.reads, work.bytes, work.batches)
    compute = speeds.rest_ms + 1e3 * work.product_bytes / speeds.product
    return 1e3 * work.copied_bytes / speeds.copy + max(io, compute)


def _median_seconds(run: Callable[[], object], repeats: int = 15) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def product_speed(shape: FFNShape, layers: int, dtype: torch.dtype, rows: int, fires: float | None = None) -> float:
    """Bytes of FFN weights a second: one token through `rows` neurons of each layer in turn, as in decoding.

    fires: share of these neurons that fire, whose down columns alone the sparse product reads; None for the product of
    whole layers as they stream. As many layers as fit SAMPLE_BYTES stand for all, but at least one.
    """
    d, nbytes = shape.d_model, rows * 2 * shape.half_bytes
    layers = max(1, min(layers, SAMPLE_BYTES // nbytes))
    x = torch.randn(1, d).to(dtype)
    if fires is None:
        halves = [(torch.randn(rows, d).to(dtype), torch.randn(rows, d).to(dtype)) for _ in range(layers)]
        bias = torch.zeros(rows, dtype=dtype)
        return layers * nbytes / _median_seconds(lambda: [relu_ffn(x, up, bias, down) for up, down in halves])
    matrices = [torch.randn(rows, shape.record_bytes // shape.itemsize).to(dtype) for _ in range(layers)]
    threshold = d**0.5 * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(min(fires, 0.99)))  # of x up^T
    bias = threshold.to(dtype).expand(rows).contiguous()
    return layers * nbytes / _median_seconds(lambda: [ffn_product(x, matrix, bias, d) for matrix in matrices])


def linear_speed(width: int, dtype: torch.dtype) -> float:
    """Bytes a second of square matrices that one token multiplies, as attention does: what is no FFN."""
    x, nbytes = torch.randn(1, width).to(dtype), width * width * dtype.itemsize
    matrices = [torch.randn(width, width).to(dtype) for _ in range(max(1, SAMPLE_BYTES // nbytes))]
    return len(matrices) * nbytes / _median_seconds(lambda: [linear(x, matrix) for matrix in matrices])


def copy_speed(nbytes: int) -> float:
    """Bytes a second that rebuilding a matrix of `nbytes` copies, its allocation included."""
    source = aligned_buffer(max(1, nbytes // PAGE), PAGE)
    source[:] = 1  # so that it has memory of its own
    index = np.arange(len(source))

    def rebuild() -> None:
        np.take(source, index, axis=0, out=aligned_buffer(*source.shape), mode="clip")

    return source.nbytes / _median_seconds(rebuild)
