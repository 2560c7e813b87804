# Solutions of exercises 2.1, 2.2: flashlite.predictor as the engine runs it.
"""Which neurons will fire, known before their weights are read. (Paper: section 3.1, predicting ReLU sparsity)

A predictor is called with what enters a layer's FFN, x [tokens, d_model], and returns the neurons that any of these
tokens needs: [n] int64, sorted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from flashlite.atomic import new_file
from flashlite.bundle import FFNShape
from flashlite.direct import aligned_buffer
from flashlite.errors import PredictorError, check_limit_of_files
from flashlite.neurons import NeuronFile
from flashlite.objects import LARGEST, parse_object

FORMAT = 2
INT8_BLOCK = 32  # torch's int8 product reads whole blocks, beyond the end of a matrix that is no multiple
PARTS = ("a", "a_scale", "b", "b_scale", "bias")
LARGEST_FIGURE = 2**20  # in a report: more than any layer has neurons


class Predictor(Protocol):
    """Says which neurons of one layer fire."""

    nbytes: int

    def mask(self, x: Tensor) -> Tensor:
        """By token: [tokens, ffn] bool. x: [tokens, d_model]."""


def active_set(predictor: Predictor, x: Tensor) -> np.ndarray:
    """The neurons that at least one token needs: [n] int64, sorted. x: [tokens, d_model]."""
    # 2.1  A layer is computed for all tokens at once, so it needs the union of what they use. One token is the case
    # that runs thousands of times, and there the union is the mask itself. Neuron numbers, sorted and each once, are
    # what window and reads work with.
    # Usual mistakes: only neurons that all tokens need (all instead of any); only the last token's; a neuron listed
    # once for each token that needs it; the mask instead of neuron numbers.
    mask = predictor.mask(x)
    return np.flatnonzero(mask[0].numpy() if len(mask) == 1 else mask.any(0).numpy())


@dataclass(frozen=True)
class Int8Matrix:
    """A weight matrix in a quarter of float32's memory: values [out, in] int8, scale [out] bf16."""

    values: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        out, inside = self.values.shape
        if out % INT8_BLOCK or inside % INT8_BLOCK or not self.values.is_contiguous():
            raise PredictorError(
                f"a predictor's matrix of {out} x {inside} is no multiple of {INT8_BLOCK}: change its rank"
            )

    @classmethod
    def of(cls, weight: Tensor) -> Int8Matrix:
        """The nearest such matrix. weight: [out, in], floating point."""
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
        values = (weight / scale.float()[:, None]).round().clamp(-127, 127)
        return cls(values.to(torch.int8).contiguous(), scale)

    def __call__(self, x: Tensor) -> Tensor:
        """x W^T. x: [tokens, in] bfloat16. Returns [tokens, out] bfloat16."""
        return torch._weight_int8pack_mm(x, self.values, self.scale)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.values.nbytes + self.scale.nbytes


class LowRankPredictor:
    """Two thin matrices that stand in for the up projection: where a neuron's score is positive, it should fire.

    a: [rank, d_model]; b: [ffn, rank]; bias: [ffn] bfloat16, with the calibrated threshold already subtracted. The
    weights are int8: a score must only be right about its sign, and each byte that a predictor takes is missing for
    neurons.
    """

    def __init__(self, a: Int8Matrix, b: Int8Matrix, bias: Tensor) -> None:
        self.a, self.b, self.bias = a, b, bias.bfloat16()
        self.nbytes = a.nbytes + b.nbytes + self.bias.nbytes

    @classmethod
    def of(cls, a: Tensor, b: Tensor, bias: Tensor) -> LowRankPredictor:
        """A predictor of float matrices, which it rounds. a: [rank, d_model]; b: [ffn, rank]; bias: [ffn]."""
        return cls(Int8Matrix.of(a), Int8Matrix.of(b), bias)

    @property
    def rank(self) -> int:
        """The width of the bottleneck."""
        return len(self.a.values)

    def scores(self, x: Tensor) -> Tensor:
        """[tokens, ffn] bfloat16, positive where a neuron should fire. x: [tokens, d_model]."""
        # 2.2  The up projection's sign is all that is wanted, and two thin matrices get it at a small part of its cost.
        # The paper's sigmoid(s) > 0.5 is the same as s > 0, so no sigmoid is computed; the threshold sits in the bias,
        # so it costs nothing either. The sum is added in place to the product's fresh result, which spares a copy of
        # [tokens, ffn].
        # Usual mistakes: leaving out the bias, and with it the threshold; subtracting it; a ReLU between the two
        # matrices; passing x on without making it bfloat16; adding in place to self.bias, which then grows with each
        # token.
        return self.b(self.a(x.bfloat16())).add_(self.bias)

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor."""
        return self.scores(x) > 0


class OraclePredictor:
    """The true active set, computed by reading the whole up projection from flash for every token.

    It makes every stage exact, so it separates the system's errors from the predictor's. It is slow, and its reads and
    its buffer of 1 MiB are not counted with the model's. file: in the split layout only half as much is read.
    """

    BUFFER_BYTES = 1 << 20

    def __init__(self, file: NeuronFile, layer: int, bias: Tensor) -> None:
        self.nbytes = 0
        self._file, self._begin, self._bias = file, file.begins[layer][0], bias
        self._row_bytes = file.pieces[0].nbytes  # of an up row, or of the bundle that begins with it
        rows = min(file.shape.neurons, max(1, self.BUFFER_BYTES // self._row_bytes))
        self._parts = np.array_split(np.arange(file.shape.neurons), -(-file.shape.neurons // rows))

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor."""
        buffer = aligned_buffer(len(self._parts[0]), self._row_bytes)
        up = torch.from_numpy(buffer).view(x.dtype)[:, : self._file.shape.d_model]
        masks = []
        for part in self._parts:
            self._file.file.read(self._begin + part * self._row_bytes, self._row_bytes, buffer, part - part[0])
            masks.append(torch.addmm(self._bias[torch.from_numpy(part)], x, up[: len(part)].T) > 0)
        return torch.cat(masks, 1)


@dataclass(frozen=True)
class LayerReport:
    """How good one layer's predictor is on held-out text.

    active (truly) and predicted: shares of all neurons; recall: predicted share of the active ones; false_negatives:
    missed share of the active ones; false_positives: wrongly predicted share of the inactive ones; window_rows[k-1]:
    mean size of the union of k tokens' predicted sets, s_agg(k), in neurons.
    """

    rank: int
    active: float
    predicted: float
    recall: float
    false_negatives: float
    false_positives: float
    window_rows: tuple[float, ...]


@dataclass(frozen=True)
class PredictorSet:
    """The predictors of all layers with what is known of them."""

    layers: Sequence[LowRankPredictor]
    reports: Sequence[LayerReport]

    def save(self, path: Path) -> None:
        """Write one safetensors file that appears only when complete, with a checksum of all that it says."""
        tensors: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            parts = zip(PARTS, (layer.a.values, layer.a.scale, layer.b.values, layer.b.scale, layer.bias), strict=True)
            tensors |= {f"layers.{i}.{name}": tensor.contiguous() for name, tensor in parts}
        reports = json.dumps([vars(report) for report in self.reports])
        metadata = {"format": str(FORMAT), "reports": reports, "sha256": _digest(tensors, reports)}
        try:
            with new_file(path) as unfinished:
                save_file(tensors, unfinished, metadata)
        except (OSError, SafetensorError) as error:
            raise PredictorError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: Path, layers: int, shape: FFNShape) -> PredictorSet:
        """Read the file of a model with these layers. Raises PredictorError if it is missing, altered or another's."""
        if not path.is_file():
            raise PredictorError(
                f"{path.parent} has no predictor: run `flashlite train-predictor {path.parent} --text FILES`, "
                "or use predictor='oracle'"
            )
        try:
            if path.stat().st_size > largest_file(layers, shape):
                raise PredictorError(f"{path} is larger than any predictor of this model: train the predictor again")
            content = path.read_bytes()  # not mapped: cut while it is read, a mapped file ends the process
            tensors, metadata = load_tensors(content), _metadata(content)
            if metadata.get("format") != str(FORMAT):
                raise PredictorError(f"{path} has another format than {FORMAT}: train the predictor again")
            if metadata["sha256"] != _digest(tensors, metadata["reports"]):
                raise PredictorError(f"{path} was altered: train the predictor again")
            parts = [[tensors[f"layers.{i}.{name}"] for name in PARTS] for i in range(layers)]
            reports = [_report(content) for content in json.loads(metadata["reports"])]
        except OSError as error:
            check_limit_of_files(path, error)
            raise PredictorError(f"{path} cannot be read: {error.strerror}") from None
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            raise PredictorError(f"{path} is damaged or another model's: {error}; train the predictor again") from None
        if len(reports) != layers or any(not _fit(part, shape) for part in parts):
            raise PredictorError(f"{path} was trained for another model: train the predictor again")
        predictors = [LowRankPredictor(Int8Matrix(p[0], p[1]), Int8Matrix(p[2], p[3]), p[4]) for p in parts]
        return cls(predictors, reports)


def largest_file(layers: int, shape: FFNShape) -> int:
    """Bytes of the largest predictor that makes sense, whose rank is d_model, and of its header."""
    int8, bf16 = shape.d_model * (shape.d_model + shape.neurons), 2 * (shape.d_model + 2 * shape.neurons)
    return layers * (int8 + bf16) + LARGEST


def _metadata(content: bytes) -> dict[str, Any]:
    """What a safetensors file says of itself."""
    length = int.from_bytes(content[:8], "little")
    return parse_object(content[8 : 8 + length]).get("__metadata__") or {}


def _digest(tensors: dict[str, Tensor], reports: str) -> str:
    """The SHA-256 of what a predictor's file says, in whichever order it says it."""
    digest = hashlib.sha256(f"{FORMAT} {reports}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fit(parts: Sequence[Tensor], shape: FFNShape) -> bool:
    """Whether the tensors of a layer's predictor are those of a model of this shape."""
    rank = max((1, *parts[0].shape[:1]))
    shapes = [(rank, shape.d_model), (rank,), (shape.neurons, rank), (shape.neurons,), (shape.neurons,)]
    dtypes = [torch.int8, torch.bfloat16, torch.int8, torch.bfloat16, torch.bfloat16]
    return [(part.dtype, tuple(part.shape)) for part in parts] == list(zip(dtypes, shapes, strict=True))


def _report(content: dict[str, Any]) -> LayerReport:
    report = LayerReport(**content | {"window_rows": tuple(content["window_rows"])})
    numbers = [value for name, value in vars(report).items() if name != "window_rows"]
    if not report.window_rows or not all(0 <= number <= LARGEST_FIGURE for number in (*numbers, *report.window_rows)):
        raise ValueError("a report holds what is no number")
    return report
