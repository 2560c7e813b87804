# Exercises 0.2, 0.3. With `--impl ref,ex00=mine` this file takes the place of flashlite.bench.cost.
# Everything without a TODO is provided, and runs as it stands.
"""What a token must cost: the paper's model of latency, fed with counts and with this machine's own speeds.

latency = flash I/O + memory management + compute. I/O follows from the drive's curve and the counted reads and bytes,
memory management from the bytes copied, compute from the bytes multiplied. (Paper: section 2.1)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.functional import linear

from flashlite.drive.direct import PAGE, aligned_buffer
from flashlite.drive.probe import Curve
from flashlite.engine.device.bus import bus_to
from flashlite.engine.device.memory import Memory
from flashlite.engine.int8.product import row_product
from flashlite.engine.pool import products_of
from flashlite.engine.stream import streamed_product
from flashlite.families.activation import RELU, Activation
from flashlite.storage.bundle import FFNShape
from flashlite.storage.int8.rounding import LARGEST

CPU = torch.device("cpu")
BUS_BYTES = 2**25
STANDARD = torch.distributions.Normal(0.0, 1.0)
STEP = 3**0.5 / LARGEST  # of int8, for evenly distributed weights of variance 1
SAMPLE_BYTES = 2**29  # far more than the processor's caches hold


@dataclass(frozen=True)
class Work:
    """What one token does, counted.

    reads, bytes: from flash
    batches: in how many parts a token waits for its reads, each part after the one before
    copied_bytes: inside DRAM
    product_bytes: of FFN weights that are multiplied
    overlapped: whether the drive reads for one layer while the processor computes another
    """

    reads: float
    bytes: float
    batches: int
    copied_bytes: float
    product_bytes: float
    overlapped: bool


@dataclass(frozen=True)
class Speeds:
    """What the processor does.

    product, copy: FFN weights multiplied, and bytes copied, in bytes a second
    rest_ms: a token's time without its FFNs, in milliseconds
    """

    product: float
    copy: float
    rest_ms: float


def io_ms(curve: Curve, reads: float, nbytes: float, batches: int) -> float:
    """Milliseconds that reads take: as many in flight as a batch has, at most what the curve was measured with.

    curve: what the drive does
    reads, nbytes: of one token, from flash
    batches: in how many parts the token waits for them
    """
    # TODO 0.2  what reads must cost on this drive (warm-up, 10 minutes, paper section 2.2)
    # How many milliseconds do `reads` random reads of together `nbytes` bytes take on the drive whose throughput
    # `curve` holds? They are done in `batches` that each wait for the one before, so only the reads of one batch are in
    # flight together: on average reads / batches. Their average size is nbytes / reads. Ask the curve for the
    # throughput at that size and depth, and divide.
    # Counts are averages over tokens, so `reads` may be a fraction, and smaller than `batches`: then one read is in
    # flight. More reads in flight than the deepest that was measured, curve.depths[-1], gain nothing. With no reads the
    # time is 0.
    # Example: a drive that does 4096-byte reads at 50 MB/s one at a time, and at 400 MB/s with 32 in flight:
    #   io_ms(curve, reads=320, nbytes=320 * 4096, batches=10)  -> 3.2768     32 reads in flight
    #   io_ms(curve, reads=320, nbytes=320 * 4096, batches=320) -> 26.2144    one read in flight
    # Provided: curve.rate(nbytes, depth) gives the throughput in bytes a second for reads of `nbytes` bytes each, with
    # `depth` of them in flight.
    # In the engine: flashlite estimate opt-6.7b --drive 870 --impl ref,0.2=mine
    raise NotImplementedError("exercise 0.2: delete this line and write io_ms, see the TODO above")


def token_ms(curve: Curve, work: Work, speeds: Speeds) -> float:
    """Milliseconds that one token must take: flash I/O + memory management + compute.

    Where reads and computing overlap, both together take as long as the slower of the two. What is copied, and what
    each batch takes to be begun and ended, comes on top. (Paper: section 2.1; overlap is beyond the paper)
    """
    # TODO 0.3  the cost model: one token's latency (3 points, 10 minutes, paper section 2.1; overlap is beyond the
    # paper)
    # The latency of one token is flash I/O + memory management + compute, here in milliseconds. Memory management is
    # work.copied_bytes at speeds.copy bytes a second. Compute has two parts: the FFN's products, work.product_bytes at
    # speeds.product bytes a second, and everything but the FFNs, speeds.rest_ms, which is in milliseconds already.
    # Besides, each of the work.batches batches of reads takes curve.batch_ms milliseconds to be begun and ended,
    # whatever it reads.
    # Without overlap all of these follow one another and add up. With work.overlapped the drive reads for one layer
    # while the processor computes another: I/O and compute, and only these two, then take as long as the slower of
    # them. A token may read, copy or multiply nothing.
    # Example: I/O of 3.28 ms in 10 batches of 0.1 ms, 4e6 bytes copied at 2e9 bytes/s, 5e6 bytes multiplied at 1e9
    # bytes/s, rest 3 ms:
    #   overlapped = False -> 1 + 2 + 3.28 + (3 + 5) = 14.28
    #   overlapped = True  -> 11.0
    # Provided: io_ms (exercise 0.2) gives the milliseconds of a token's reads. The fields of Work and Speeds are
    # described above.
    # In the engine: flashlite estimate opt-6.7b --drive 870 --impl ref,0.3=mine
    raise NotImplementedError("exercise 0.3: delete this line and write token_ms, see the TODO above")


def device_token_ms(curve: Curve, work: Work, speeds: Speeds, bus: float) -> float:
    """Milliseconds that one token must take on a device: what it takes without a bus, and all that is read crosses it.

    bus: bytes a second that copies to the device reach

    A layer's copy begins when its reads have ended, and its product when the copy has ended. So the bus comes on top,
    also where reads and computing overlap. Beyond the paper.
    """
    return token_ms(curve, work, speeds) + 1e3 * work.bytes / bus


def _median_seconds(run: Callable[[], object], repeats: int = 15) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def product_speed(
    shape: FFNShape, layers: int, dtype: torch.dtype, rows: int, fires: float | None = None,
    activation: Activation = RELU, device: torch.device = CPU,
) -> float:  # fmt: skip
    """Bytes of FFN weights a second: one token through `rows` neurons of each layer in turn, as in decoding.

    shape, layers, dtype: of the model; as many layers as fit SAMPLE_BYTES stand for all, but at least one does
    rows: neurons of a layer that are multiplied at a time
    fires: share of these neurons that fire, because the sparse product reads only their down columns; None for the
        product of whole layers as they stream
    activation: what the neurons compute
    device: what multiplies
    """
    d, nbytes, gated = shape.d_model, rows * shape.neuron_bytes, shape.matrices > 2
    layers = max(1, min(layers, SAMPLE_BYTES // nbytes))
    bias = _biases(shape, rows, dtype, fires).to(device)
    x = torch.randn(1, d).to(device, bias.dtype)
    if fires is None:
        parts = [[_weights(rows, d, dtype, device) for _ in range(shape.matrices)] for _ in range(layers)]
        ffn = streamed_product(dtype, activation, gated)
        runs = [partial(ffn, x, first, bias, down, None, *second) for first, down, *second in parts]
    else:
        matrices = [_weights(rows, shape.record_bytes // shape.itemsize, dtype, device) for _ in range(layers)]
        product = products_of(dtype, activation, gated).product
        runs = [partial(product, x, matrix, bias, d) for matrix in matrices]
    bus = bus_to(device)

    def multiply() -> None:
        for run in runs:
            run()
        bus.finish()

    return layers * nbytes / _median_seconds(multiply)


def _biases(shape: FFNShape, rows: int, dtype: torch.dtype, fires: float | None) -> torch.Tensor:
    """What rows of neurons have beside their weights: biases by which a share of them fires, and in int8 scales."""
    biases = torch.zeros(2 if shape.matrices > 2 else 1, rows)
    if fires is not None:
        biases[0] = shape.d_model**0.5 * STANDARD.icdf(torch.tensor(min(fires, 0.99)))  # of x up^T
    if dtype == torch.int8:
        return torch.cat([biases, torch.full((shape.matrices, rows), STEP)])
    return (biases if len(biases) > 1 else biases[0]).to(dtype)


def _weights(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random weights of variance 1, in int8 those whose scale is STEP: [rows, width]."""
    if dtype == torch.int8:
        return torch.randint(-LARGEST, LARGEST + 1, (rows, width), dtype=dtype, device=device)
    return torch.randn(rows, width).to(device, dtype)


def linear_speed(width: int, dtype: torch.dtype) -> float:
    """Bytes a second of square matrices that one token multiplies, as attention does: the part that is not FFN."""
    nbytes = width * width * dtype.itemsize
    matrices = [_weights(width, width, dtype, CPU) for _ in range(max(1, SAMPLE_BYTES // nbytes))]
    x, scale = torch.randn(1, width), torch.full((width,), STEP)
    multiply = partial(row_product, x, scale=scale) if dtype == torch.int8 else partial(linear, x.to(dtype))
    return len(matrices) * nbytes / _median_seconds(lambda: [multiply(matrix) for matrix in matrices])


def copy_speed(nbytes: int) -> float:
    """Bytes a second that rebuilding a matrix of `nbytes` copies, its allocation included."""
    source = aligned_buffer(max(1, nbytes // PAGE), PAGE)
    source[:] = 1  # so that it has memory of its own
    index = np.arange(len(source))

    def rebuild() -> None:
        np.take(source, index, axis=0, out=aligned_buffer(*source.shape), mode="clip")

    return source.nbytes / _median_seconds(rebuild)


def bus_speed(device: torch.device) -> float:
    """Bytes a second that copies from the host's memory to a device reach, if they are large."""
    bus = bus_to(device)
    source, target = bus.buffer(BUS_BYTES // PAGE, PAGE), Memory.on(device).rows(BUS_BYTES // PAGE, PAGE)
    source[:] = 1  # so that it has memory of its own

    def carry() -> None:
        bus.send(target, source)
        bus.wait()

    return source.nbytes / _median_seconds(carry)
