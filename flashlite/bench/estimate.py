"""What a token would take of models and on drives that are not at hand: the cost model, without running.

Counts follow from the model's shape and from how sparse its FFNs are, the processor's speeds are measured here, and a
drive is a curve: the user's own, or a published one. (Paper: sections 2.1 and 3)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from flashlite.bench.cost import Speeds, Work, copy_speed, linear_speed, product_speed, token_ms
from flashlite.drive.probe import Curve
from flashlite.drive.reads import LARGEST_READ
from flashlite.engine.budget import LARGEST_BUFFER
from flashlite.engine.predictor_file import LayerReport, PredictorSet
from flashlite.engine.stages import NAMES
from flashlite.errors import FlashliteError
from flashlite.families.activation import Activation
from flashlite.families.configured import expected_shapes, read_config
from flashlite.families.family import Family
from flashlite.families.known import FAMILIES, activation_of, family_of
from flashlite.families.opt import OPT, resident_and_streamed
from flashlite.families.published import published_config
from flashlite.storage.bundle import FFNShape
from flashlite.storage.hub import BUNDLED
from flashlite.storage.int8.resident import resident_specs
from flashlite.storage.safetensors_file import STORED
from flashlite.storage.side_files import CONFIG
from flashlite.storage.store import PREDICTOR, shape_of
from flashlite.storage.weights import read_json
from flashlite.training.planted_figures import FIGURES
from flashlite.training.train_predictor import WINDOW

GRID = 512  # bytes; the grid of most drives
MOST_LAYERS = 32  # that a sample of products goes round


@dataclass(frozen=True)
class Sparsity:
    """Shares of an FFN's neurons, for one token. (Paper: 3.1, OPT-6.7B)

    active: those that fire
    predicted: those that are predicted to fire
    resident: those that are in DRAM
    new: those that must be read
    wasted: neurons that stage 6 reads for nothing, as a share of those that it must read
    """

    active: float = 0.033
    predicted: float = 0.10
    resident: float = 0.24
    new: float = 0.024
    wasted: float = 0.25

    @classmethod
    def of(cls, name: str, parallel: bool) -> Sparsity:
        """A published model's, as far as papers tell of it, else what follows from them: see planted_figures.py.

        parallel: whether attention runs beside the FFN, so that nothing is read for nothing
        """
        if name not in FIGURES:
            return cls()
        planted = FIGURES[name]
        predicted, wasted = planted.predicted_over_active * planted.mean, 0.0 if parallel else cls.wasted
        return cls(planted.mean, predicted, planted.resident, planted.new, wasted)

    @classmethod
    def measured(cls, reports: Sequence[LayerReport], neurons: int, parallel: bool) -> Sparsity:
        """A model's whose predictors were measured, with the window that they were measured for.

        neurons: of a layer
        parallel: see `of`
        """

        def mean(of: Callable[[LayerReport], float]) -> float:
            return sum(map(of, reports)) / len(reports)

        resident = mean(lambda r: r.window_rows[WINDOW - 1]) / neurons
        new = mean(lambda r: r.window_rows[WINDOW]) / neurons - resident
        wasted = 0.0 if parallel else cls.wasted
        return cls(mean(lambda r: r.active), mean(lambda r: r.predicted), resident, new, wasted)


def count_work(shape: FFNShape, layers: int, resident_bytes: int, sparsity: Sparsity) -> dict[str, Work]:
    """What a token does at each stage, by the stage's name.

    shape, layers: of the model's FFNs
    resident_bytes: of all weights that are not in an FFN's matrices
    sparsity: shares of neurons
    """
    neurons, record = layers * shape.neurons, shape.record_bytes
    ffn_bytes = layers * shape.layer_bytes
    passes = layers * -(-shape.layer_bytes // LARGEST_BUFFER)
    product = shape.neuron_bytes * neurons
    resident = Work(ffn_bytes / LARGEST_READ, ffn_bytes, passes, 0, product, overlapped=False)
    everything = ffn_bytes + resident_bytes
    naive = replace(resident, reads=everything / LARGEST_READ, bytes=everything, batches=passes + layers + 1)

    def sparse(read: float, held: float, pieces: int, copied: bool) -> Work:
        nbytes = read * neurons * (record if pieces == 1 else shape.neuron_bytes)
        rows = held * neurons
        moved = rows * record if copied else 0.0
        return Work(pieces * read * neurons, nbytes, layers, moved, held * product, overlapped=False)

    s, split = sparsity, shape.matrices
    pool = sparse(s.new, s.resident, 1, copied=False)
    works = (
        naive, resident, sparse(s.predicted, s.predicted, split, copied=True),
        sparse(s.new, s.resident, split, copied=True), sparse(s.new, s.resident, 1, copied=True), pool,
        replace(pool, reads=pool.reads * (1 + s.wasted), bytes=pool.bytes * (1 + s.wasted), overlapped=True),
    )  # fmt: skip
    return dict(zip(NAMES, works, strict=True))


def estimate(
    name: str, curves: Mapping[str, Curve], dtype: str = "bf16", sparsity: Sparsity | None = None
) -> dict[str, Any]:
    """Milliseconds a token at every stage and on every drive, and what they follow from.

    name: a published model, such as opt-6.7b or falcon-7b, or one that comes with flashlite
    curves: drives by name
    dtype: fp32, bf16, fp16 or int8
    sparsity: shares of neurons; unless given, those of Sparsity.of, or those that were measured of a model that comes
        with flashlite

    Raises FlashliteError for an unknown name or dtype.
    """
    if dtype not in STORED:
        raise FlashliteError(f"unknown dtype {dtype!r}: choose one of {', '.join(STORED)}")
    config, kind = _config(name), STORED[dtype]
    family = FAMILIES[config.model_type]
    shape, activation = shape_of(config, family, kind, GRID), activation_of(config, family)
    sparsity = sparsity or _sparsity(name, config, shape)
    resident, streamed = (n * kind.itemsize for n in _weights(config, family))
    if dtype == "int8":  # whose scales, norms and biases are float32
        specs = resident_specs(expected_shapes(config, family), family, config.num_hidden_layers)
        resident = sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs.values())
    works = count_work(shape, config.num_hidden_layers, resident, sparsity)
    rest = 1e3 * resident / linear_speed(shape.d_model, kind)
    whole = _speeds(shape, kind, activation, rest, LARGEST_BUFFER // shape.neuron_bytes, None)
    predicted, windowed = (
        _speeds(shape, kind, activation, rest, int(held * shape.neurons), sparsity.active / held)
        for held in (sparsity.predicted, sparsity.resident)
    )
    speeds = dict(zip(NAMES, (whole, whole, predicted, *[windowed] * 4), strict=True))
    return {
        "model": name, "dtype": dtype, "weight_bytes": resident + streamed, "sparsity": asdict(sparsity),
        "bytes_per_token": {stage: work.bytes for stage, work in works.items()},
        "drives": {drive: _drive_ms(curve, works, speeds) for drive, curve in curves.items()},
    }  # fmt: skip


def _config(name: str) -> PreTrainedConfig:
    """The configuration of a published model, or of one that comes with flashlite."""
    if name not in BUNDLED:
        return published_config(name)
    content = read_json(BUNDLED[name] / CONFIG)
    return read_config(content, family_of(content))


def _sparsity(name: str, config: PreTrainedConfig, shape: FFNShape) -> Sparsity:
    """What is known of a model's sparsity."""
    parallel = family_of({"model_type": config.model_type}).early_norm(config) is not None
    if name not in BUNDLED:
        return Sparsity.of(name, parallel)
    path = BUNDLED[name] / PREDICTOR
    trained = PredictorSet.from_bytes(path.read_bytes(), config.num_hidden_layers, shape, path)
    return Sparsity.measured(trained.reports, shape.neurons, parallel)


def _weights(config: Any, family: Family) -> tuple[int, int]:
    """How many weights stay in DRAM, and how many stream. config: transformers' own."""
    if family is OPT:
        return resident_and_streamed(config)
    sizes = {name: math.prod(shape) for name, shape in expected_shapes(config, family).items()}
    streamed = sum(sizes[name] for name in family.streamed(config.num_hidden_layers))
    return sum(sizes.values()) - streamed, streamed


def _speeds(
    shape: FFNShape, dtype: torch.dtype, activation: Activation, rest: float, rows: int, fires: float | None
) -> Speeds:
    """What this processor does where `rows` neurons are multiplied at a time, of which a share fires."""
    product = product_speed(shape, MOST_LAYERS, dtype, rows, fires, activation)
    return Speeds(product, copy_speed(rows * shape.record_bytes), rest)


def _drive_ms(curve: Curve, works: Mapping[str, Work], speeds: Mapping[str, Speeds]) -> dict[str, float]:
    return {stage: token_ms(curve, work, speeds[stage]) for stage, work in works.items()}
