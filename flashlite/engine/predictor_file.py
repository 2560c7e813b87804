"""The predictors of a model as one file, with a report on each: how often it is right, and how much it asks for."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from flashlite.engine.predictor import Int8Matrix, LowRankPredictor
from flashlite.errors import PredictorError, one_line
from flashlite.storage.atomic import new_file
from flashlite.storage.bundle import FFNShape
from flashlite.storage.store import PREDICTOR, Store
from flashlite.storage.strict_json import LARGEST, parse_object

log = logging.getLogger("flashlite")

FILE_FORMAT, OLDEST_FILE = 3, 2  # of files that are written, and of the oldest that are read, which name no weights
RETRAIN = "; train the predictor again"
FIELDS = ("a", "a_scale", "b", "b_scale", "bias")
LARGEST_FIGURE = 2**20  # in a report: more than any layer has neurons


@dataclass(frozen=True)
class LayerReport:
    """How good one layer's predictor is on held-out text.

    rank: of its two thin matrices; 0 of a predictor that has none
    active, predicted: shares of all neurons that truly fire, and that are predicted to fire
    recall, false_negatives: shares of the active neurons that are predicted, and that are missed
    false_positives: share of the inactive neurons that are predicted all the same
    window_rows: window_rows[k - 1] is s_agg(k), the mean size of the union of k tokens' predicted sets, in neurons
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
    """The predictors of all layers, with a report on each.

    layers: one predictor a layer
    reports: how good each of them is
    up_projections: the digest of the weights that they were trained for (Store.up_projections); None if it is unknown
    """

    layers: Sequence[LowRankPredictor]
    reports: Sequence[LayerReport]
    up_projections: str | None

    def save(self, path: Path) -> None:
        """Write one safetensors file that appears only when complete, with a checksum of its content."""
        content = self.to_bytes()
        with one_line(path, PredictorError, "cannot be written"), new_file(path) as unfinished:
            unfinished.write_bytes(content)

    def to_bytes(self) -> bytes:
        """The content of that file."""
        tensors: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            parts = zip(FIELDS, (layer.a.values, layer.a.scale, layer.b.values, layer.b.scale, layer.bias), strict=True)
            tensors |= {f"layers.{i}.{name}": tensor.contiguous() for name, tensor in parts}
        reports = json.dumps([vars(report) for report in self.reports])
        return save_tensors(tensors, signed(tensors, reports, self.up_projections))

    @classmethod
    def load(cls, store: Store) -> PredictorSet:
        """The predictors in a store's folder.

        Raises PredictorError if they are missing, altered, or trained for other weights. A line is logged where that
        can't be told, because a store or a predictor is of a format that doesn't say it.
        """
        path = store.path / PREDICTOR
        if not path.is_file():
            raise PredictorError(
                f"{path.parent} has no predictor: run `flashlite train-predictor {path.parent} --text FILES`, "
                "or use predictor='oracle'"
            )
        with one_line(path, PredictorError):
            try:
                predictors = cls._parse(path, store)
            except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
                raise PredictorError(f"{path} is damaged or another model's: {error}{RETRAIN}") from None
        if None in (known := {predictors.up_projections, store.up_projections}):
            log.warning("flashlite: %s: it can't be told whether it was trained for these weights%s", path, RETRAIN)
        elif len(known) > 1:
            raise PredictorError(f"{path} was trained for other weights than this store's{RETRAIN}")
        return predictors

    @classmethod
    def _parse(cls, path: Path, store: Store) -> PredictorSet:
        if path.stat().st_size > largest_file(store.layers, store.shape):
            raise PredictorError(f"{path} is larger than any predictor of this model{RETRAIN}")
        content = path.read_bytes()  # not mapped: cut while it is read, a mapped file ends the process
        return cls.from_bytes(content, store.layers, store.shape, path)

    @classmethod
    def from_bytes(cls, content: bytes, layers: int, shape: FFNShape, path: Path | str) -> PredictorSet:
        """What `to_bytes` gave, as the predictors of so many layers. path: what an error calls it.

        Raises PredictorError, or whatever damaged tensors raise.
        """
        tensors, metadata = load_tensors(content), _metadata(content)
        if metadata.get("format") not in (str(FILE_FORMAT), str(OLDEST_FILE)):
            raise PredictorError(f"{path} has another format than {FILE_FORMAT}{RETRAIN}")
        weights = None if metadata["format"] == str(OLDEST_FILE) else metadata["up_projections"]
        if metadata != signed(tensors, metadata["reports"], weights):
            raise PredictorError(f"{path} was altered{RETRAIN}")
        parts = [[tensors[f"layers.{i}.{name}"] for name in FIELDS] for i in range(layers)]
        reports = [_report(content) for content in json.loads(metadata["reports"])]
        if len(reports) != layers or any(not _fit(part, shape) for part in parts):
            raise PredictorError(f"{path} was trained for another model{RETRAIN}")
        predictors = [LowRankPredictor(Int8Matrix(p[0], p[1]), Int8Matrix(p[2], p[3]), p[4]) for p in parts]
        return cls(predictors, reports, weights)


def signed(tensors: dict[str, Tensor], reports: str, up_projections: str | None) -> dict[str, str]:
    """The metadata of a predictor's file, with a SHA-256 of the rest of it and of the tensors, whatever their order.

    tensors: those of the file
    reports: the layers' reports as JSON
    up_projections: see PredictorSet; without it, the metadata is that of format 2
    """
    if up_projections is None:
        said = {"format": str(OLDEST_FILE), "reports": reports}
        digest = hashlib.sha256(f"{OLDEST_FILE} {reports}".encode())
    else:
        said = {"format": str(FILE_FORMAT), "reports": reports, "up_projections": up_projections}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return said | {"sha256": digest.hexdigest()}


def largest_file(layers: int, shape: FFNShape) -> int:
    """Bytes of the largest predictor that makes sense, whose rank is d_model, with its header."""
    int8, bf16 = shape.d_model * (shape.d_model + shape.neurons), 2 * (shape.d_model + 2 * shape.neurons)
    return layers * (int8 + bf16) + LARGEST


def _metadata(content: bytes) -> dict[str, Any]:
    """The metadata in the header of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return parse_object(content[8 : 8 + length]).get("__metadata__") or {}


def _fit(parts: Sequence[Tensor], shape: FFNShape) -> bool:
    """Whether the tensors of a layer's predictor fit a model of this shape."""
    rank = max((1, *parts[0].shape[:1]))
    shapes = [(rank, shape.d_model), (rank,), (shape.neurons, rank), (shape.neurons,), (shape.neurons,)]
    dtypes = [torch.int8, torch.bfloat16, torch.int8, torch.bfloat16, torch.bfloat16]
    return [(part.dtype, tuple(part.shape)) for part in parts] == list(zip(dtypes, shapes, strict=True))


def _report(content: dict[str, Any]) -> LayerReport:
    report = LayerReport(**content | {"window_rows": tuple(content["window_rows"])})
    numbers = [value for name, value in vars(report).items() if name != "window_rows"]
    if not report.window_rows or not all(0 <= number <= LARGEST_FIGURE for number in (*numbers, *report.window_rows)):
        raise ValueError("a report holds a figure that no layer has")
    return report
