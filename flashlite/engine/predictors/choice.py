"""Which predictors a model gets: trained ones, a rounded copy of the deciding matrix, the oracle, or one's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from flashlite.arguments import PredictorKind
from flashlite.engine.int8.exact_copy import ExactCopy
from flashlite.engine.predictor import LowRankPredictor, OraclePredictor, Predictor
from flashlite.engine.predictor_file import PredictorSet
from flashlite.engine.predictors.copy_predictor import CopyPredictor
from flashlite.engine.stages import Stage
from flashlite.errors import FlashliteError
from flashlite.storage.neurons import NeuronFile
from flashlite.storage.store import PREDICTOR, Store

log = logging.getLogger("flashlite")
Chosen = str | Sequence[Predictor]  # "auto", "trained", "copy", "oracle", or one predictor a layer


@dataclass(frozen=True)
class Choice:
    """The predictors of a model that is to be loaded.

    nbytes: the DRAM of all together
    needs: how many rows each layer's window would like, in any unit
    make: one layer's, from its number and the bias [ffn] of its deciding matrix; it may read weights
    advice: what to do where the budget is too small for them
    int8_weights: how many of their weights are int8, which take two bytes on a device
    """

    nbytes: int
    needs: Sequence[float]
    make: Callable[[int, Tensor], Predictor]
    advice: str = ""
    int8_weights: int = 0


def automatic(store: Store) -> PredictorKind:
    """What "auto" means for a store: "trained" where it has predictors, else "copy", which a line says."""
    if (store.path / PREDICTOR).exists():
        return "trained"
    log.warning(
        "flashlite: %s has no trained predictor, so a rounded copy of the weights that decide predicts; "
        "`flashlite train-predictor` makes a smaller one",
        store.path,
    )
    return "copy"


def choose(store: Store, stage: Stage, predictor: Chosen) -> Choice:
    """The predictors that `load` is asked for. No weights are read. Raises FlashliteError if there are none such."""
    equal = [1.0] * store.layers
    if not stage.predictor:
        predictor = "oracle"  # which takes no DRAM
    if predictor == "auto":
        predictor = automatic(store)
    if predictor == "oracle":
        return Choice(0, equal, _from_flash(store, OraclePredictor))
    if predictor == "copy":
        copy = ExactCopy if store.quantized else CopyPredictor
        nbytes = store.layers * copy.bytes_needed(store.shape)
        advice = f"; a trained predictor is smaller: run `flashlite train-predictor {store.path} --text FILES`"
        weights = store.layers * copy.int8_weights(store.shape)
        return Choice(nbytes, equal, _from_flash(store, copy.read), advice, weights)
    if predictor == "trained":
        trained = PredictorSet.load(store)
        k = max(1, stage.window)
        needs = [report.window_rows[min(k, len(report.window_rows)) - 1] for report in trained.reports]
        return _given(trained.layers, needs)
    if not isinstance(predictor, (list, tuple)):
        raise FlashliteError(
            f"unknown predictor {predictor!r:.80}: use 'auto', 'trained', 'copy', 'oracle', or a list, one a layer"
        )
    if len(predictor) != store.layers:
        raise FlashliteError(f"{len(predictor)} predictors were given for {store.layers} layers")
    return _given(predictor, equal)


def _from_flash(store: Store, kind: Callable[..., Predictor]) -> Callable[[int, Tensor], Predictor]:
    return lambda i, bias: kind(NeuronFile(store, store.layouts[0]), i, bias, store.activation)


def _given(predictors: Sequence[Predictor], needs: Sequence[float]) -> Choice:
    nbytes = sum(predictor.nbytes for predictor in predictors)
    weights = sum(predictor.int8_weights for predictor in predictors if isinstance(predictor, LowRankPredictor))
    return Choice(nbytes, needs, lambda i, bias: predictors[i], int8_weights=weights)
