"""Models of published sizes with planted sparsity: real reads and real products where real weights can't be had.

A planted model has the shape of a published one, a predictor, and the sparsity that papers tell of it: neurons fire at
rates that differ from layer to layer and have a heavy tail, and the neurons that a token needs overlap with those of
the tokens before it. Its text is noise. (Paper: section 3.1; planted_figures.py has all figures and their sources)

    first = b a         two thin matrices, so that a predictor of that rank knows every sign
    norm's signs        some turn from layer to layer, so that a layer's input tells the next one's well, but not fully
    text                changes fast by one part and slowly by another, so that windows overlap (planted_text.py)
    bias                measured layer by layer, so that each neuron fires as often as it should (planted_bias.py)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal
from transformers import PreTrainedConfig

from flashlite.arguments import LAYOUTS
from flashlite.engine.predictor import INT8_BLOCK, LowRankPredictor
from flashlite.engine.predictor_file import LayerReport, PredictorSet
from flashlite.families.configured import expected_shapes
from flashlite.families.known import activation_of, family_of
from flashlite.families.published import published_config
from flashlite.storage.bundle import round_up
from flashlite.storage.hub import BUNDLED_MODEL
from flashlite.storage.pack import write_store
from flashlite.storage.side_files import copy_files
from flashlite.storage.store import PREDICTOR, Store
from flashlite.training.planted_bias import Bias, OwnBias, SharedDirection
from flashlite.training.planted_figures import Figures, figures_of
from flashlite.training.planted_layer import run_layer
from flashlite.training.planted_text import LENGTH, SEQUENCES, ChainText, Noise, PositionText, Text
from flashlite.training.train_predictor import WINDOW, Activations, report

SMALL = 0.05  # the size of a block's contribution to the residual stream
TURN = 0.035  # share of the FFN norm's signs that turn from a layer to the next: inputs of neighbours have cosine 0.93
ATTENTION_OUT = ("out_proj", "o_proj", "dense")  # what families call the matrix by which attention contributes
NORMS = ("final_layer_norm", "post_attention_layernorm")  # and the norm before the FFN, where attention comes first
STANDARD = Normal(0.0, 1.0)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class PlantedModel:
    """Made-up weights with the interface of a Checkpoint: config, settings, family, names, shape(name), tensor(name).

    settings: transformers' configuration of the model
    figures: what is planted
    seed: of all random numbers

    Every tensor is made anew from the seed and its name when it is asked for, so that no model need fit in DRAM. Only
    biases are kept, once their layer is calibrated.

    text: what the model reads and writes
    predictors: one for each layer that is calibrated
    reports: how good each of these predictors is
    early_shares: for each of these layers but the first, the share of its predicted neurons that are also predicted
        from the input of the layer before
    """

    def __init__(self, settings: PreTrainedConfig, figures: Figures, seed: int = 0) -> None:
        self.settings, self.planted, self.seed = settings, figures, seed
        self.config: dict[str, Any] = settings.to_dict() | {"model_type": settings.model_type}
        self.family = family_of(self.config)
        self.activation = activation_of(settings, self.family)
        self.neurons: int = getattr(settings, self.family.neurons)
        self.rank = round_up(settings.hidden_size // 32, INT8_BLOCK)
        self._shapes = expected_shapes(settings, self.family)
        self.names = sorted(self._shapes)
        self._noise = Noise(seed)
        self._norm = self.family.early_norm(settings) or next(norm for norm in NORMS if self._has(f"{norm}.weight"))
        own, width = self._has(f"{self.family.first}.bias"), (settings.hidden_size,)
        self._bias: Bias = OwnBias() if own else SharedDirection(self._noise("direction", width))
        about = settings, self.family, self._noise, figures.slow
        self.text: Text = PositionText(*about) if self.family.positions else ChainText(*about, self._bias)
        self.predictors: list[LowRankPredictor] = []
        self.reports: list[LayerReport] = []
        self.early_shares: list[float] = []
        self._biases: list[Tensor] = []
        self._before: Tensor | None = None  # the input of the FFN before
        self._hidden = self.text.hidden()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._shapes[name]

    def _has(self, part: str) -> bool:
        """Whether layers have a tensor of this name."""
        return self.family.layer.format(0) + part in self._shapes

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32."""
        shape, begin = self._shapes[name], self.family.layers + "."
        if not name.startswith(begin):
            return self.text.tensor(name, shape)
        number, _, part = name.removeprefix(begin).partition(".")
        layer, module = int(number), part.rpartition(".")[0]
        if module == self.family.first:
            return self._bias_of(layer) if part.endswith("bias") else self._first(layer)
        if part.endswith("bias"):
            return torch.zeros(shape)
        if len(shape) == 1:
            return self._signs(layer) if module == self._norm else torch.ones(shape)
        return self._scale(module, shape) * self._noise(name, shape)

    def _scale(self, module: str, shape: tuple[int, ...]) -> float:
        """Standard deviation of a matrix's weights. A product with the matrix is as large as its input, or small if it
        is added to the residual stream."""
        if module == self.family.down:
            return SMALL * (self.planted.square * shape[1]) ** -0.5
        return (SMALL if module.endswith(ATTENTION_OUT) else 1.0) * shape[1] ** -0.5

    def _signs(self, layer: int) -> Tensor:
        """The weight of the norm before a layer's FFN: [d_model], 1 or -1."""
        size, share = (self.settings.hidden_size,), STANDARD.icdf(torch.tensor(TURN))
        turns = [torch.where(self._noise(f"signs.{i}", size) < share, -1.0, 1.0) for i in range(layer + 1)]
        return torch.stack(turns).prod(0)

    def _factors(self, layer: int) -> tuple[Tensor, Tensor]:
        """b [ffn, rank] and a [rank, d_model], each row of norm 1, so that every score has variance near 1."""
        b = F.normalize(self._noise(f"b.{layer}", (self.neurons, self.rank)), dim=1)
        return b, F.normalize(self._noise(f"a.{layer}", (self.rank, self.settings.hidden_size)), dim=1)

    def _first(self, layer: int) -> Tensor:
        """The matrix that decides which neurons of a layer fire: [ffn, d_model]."""
        b, a = self._factors(layer)
        return self._bias.rows(b @ a, self._bias_of(layer), self._signs(layer))

    def _bias_of(self, layer: int) -> Tensor:
        """The biases of a layer's neurons [ffn], once it and all layers before it are calibrated."""
        while len(self._biases) <= layer:
            number = len(self._biases)
            calibrate = partial(self._calibrate, number)
            self._hidden = run_layer(self.settings, self.family, number, self.tensor, self._hidden, calibrate)
        return self._biases[layer]

    def rates(self, layer: int) -> Tensor:
        """How often each neuron of a layer should fire: [ffn], shares of tokens."""
        depth = layer / max(1, self.settings.num_hidden_layers - 1)
        return self.planted.rates(depth, self._noise(f"rates.{layer}", (self.neurons,)))

    def _calibrate(self, layer: int, x: Tensor) -> Tensor:
        """Give each neuron of a layer the bias with which it fires at its rate, and report on fresh sequences.

        x: [2 * SEQUENCES * LENGTH, d_model], the FFN's input, whose second half is only for the report. Returns the
        FFN's output, of the same shape.
        """
        b, a = self._factors(layer)
        scores, felt, half = F.linear(F.linear(x, a), b), self._bias.felt(x, self._signs(layer)), SEQUENCES * LENGTH
        mean, deviation, strength = scores[:half].mean(0), scores[:half].std(0), felt[:half].mean()
        rates = self.rates(layer)

        def bias_for(rates: Tensor) -> Tensor:
            return -(mean + deviation * -STANDARD.icdf(rates))

        bias = bias_for(rates)
        scores += felt / strength * bias
        predictor = LowRankPredictor.of(a, b, bias_for(self.planted.predicted(rates)))
        fired = np.packbits(self.activation.fires(scores[half:]).numpy(), axis=1)
        self._biases.append(bias / strength)
        self.predictors.append(predictor)
        self.reports.append(report(predictor, Activations(x[half:].half(), fired, self.neurons), LENGTH))
        self._note_early_share(predictor, x)
        return self._contribution(layer, x, scores)

    def _contribution(self, layer: int, x: Tensor, scores: Tensor) -> Tensor:
        """What a layer's FFN adds to the residual stream: [tokens, d_model]. scores: [tokens, ffn], which decide."""
        down, *second = (self.tensor(name.format(layer)) for name in self.family.matrices[1:])
        values = self.activation(scores, *(F.linear(x, matrix) for matrix in second))
        return F.linear(values, down)

    def _note_early_share(self, predictor: LowRankPredictor, x: Tensor) -> None:
        """Note which share of the neurons that are predicted from a layer's own input are also predicted from the input
        of the layer before. x: [tokens, d_model], the layer's own input."""
        if self._before is not None:
            true, early = predictor.mask(x), predictor.mask(self._before)
            self.early_shares.append(float((true & early).sum() / true.sum()))
        self._before = x

    def figures(self) -> dict[str, float]:
        """The sparsity that was reached, as means over the layers.

        active, predicted: share of a layer's neurons that fire for one token, and that are predicted to
        recall: share of the active neurons that are predicted
        resident: share of a layer's neurons that a window of WINDOW tokens holds
        new: share of a layer's neurons that one more token adds to such a window
        ahead: share of the predicted neurons that are also predicted from the input of the layer before
        """

        def mean(of: Callable[[LayerReport], float]) -> float:
            return float(np.mean([of(layer) for layer in self.reports]))

        return {
            "active": mean(lambda r: r.active), "predicted": mean(lambda r: r.predicted),
            "recall": mean(lambda r: r.recall), "resident": mean(lambda r: r.window_rows[WINDOW - 1]) / self.neurons,
            "new": mean(lambda r: r.window_rows[WINDOW] - r.window_rows[WINDOW - 1]) / self.neurons,
            "ahead": float(np.mean(self.early_shares)),
        }  # fmt: skip


def synth(
    name: str, out: Path | str, dtype: str = "bf16", layouts: tuple[str, ...] = LAYOUTS, seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Store:  # fmt: skip
    """Write a planted model of a published size to `out` as a store, one tensor at a time, and open it.

    name: of a published model, such as opt-6.7b or phi-2
    out: the store's folder
    dtype: fp32, bf16, fp16 or int8
    layouts: how neurons lie on flash; the store has a file for each layout
    seed: of all random numbers
    progress: is told of each step

    The manifest's `planted` has the sparsity that was reached, see PlantedModel.figures. Raises CheckpointError for an
    unknown name and StoreError if `out` can't be written, and then leaves nothing behind.
    """
    with torch.no_grad():
        planted = PlantedModel(published_config(name), figures_of(name), seed)
        return write_planted(planted, name, out, dtype, layouts, progress)


@torch.no_grad()
def write_planted(
    planted: PlantedModel, name: str, out: Path | str, dtype: str = "bf16", layouts: tuple[str, ...] = LAYOUTS,
    progress: Callable[[str], None] = lambda step: None,
) -> Store:  # fmt: skip
    """The same as `synth`, of any planted model, as a store called `name`."""

    def finish(folder: Path, up_projections: str) -> dict[str, Any]:
        PredictorSet(planted.predictors, planted.reports, up_projections).save(folder / PREDICTOR)
        copy_files(BUNDLED_MODEL, folder, TOKENIZER)  # any one will do, because the text is noise
        layers = [asdict(layer) for layer in planted.reports]
        return {"planted": {"seed": planted.seed, "window": WINDOW, **planted.figures(), "layers": layers}}

    return write_store(planted, name, out, dtype, layouts, finish, progress=progress)
