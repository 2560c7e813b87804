"""OPT of any published size with planted sparsity: real reads and real products where real weights can't be had.

A planted model has the shape of a published one, a predictor, and the paper's sparsity: neurons fire at rates that rise
with depth and have a heavy tail, and the neurons that a token needs overlap with those of the tokens before it. Its
text is noise. (Paper: section 3.1, OPT-6.7B's figures)

    up = b a            two thin matrices, so that a predictor of that rank knows every sign
    norm's signs        some turn from layer to layer, so that a layer's input tells the next one's well, but not fully
    token + position    the input changes fast by the first and slowly by the second, so that windows overlap
    position's token    each position asks for one token clearly, so that the text doesn't hang on rounding
    up bias             measured layer by layer, so that each neuron fires as often as it should
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal
from transformers import OPTForCausalLM

from flashlite.arguments import LAYOUTS
from flashlite.engine.predictor import INT8_BLOCK, LowRankPredictor
from flashlite.engine.predictor_file import LayerReport, PredictorSet
from flashlite.families.opt import OPT, published_config
from flashlite.storage.bundle import round_up
from flashlite.storage.hub import BUNDLED_MODEL
from flashlite.storage.pack import write_store
from flashlite.storage.side_files import copy_files
from flashlite.storage.store import PREDICTOR, Store
from flashlite.training.train_predictor import WINDOW, Activations, report

ACTIVE = (0.0156, 0.0266, 0.0536)  # mean share of active neurons in the first, the middle and the last layer
TAIL = 1.0  # standard deviation of the logarithm of a neuron's rate
PREDICTED_OVER_ACTIVE = 3.0  # the paper's predictors name this many times as many neurons as fire
SLOW, MEMORY = 0.6, 10.0  # share of the input's variance that changes slowly, and within how many tokens
STANDS_OUT = 10.0  # the next token's logit; the logits' standard deviation is 1
SMALL = 0.05  # the size of a block's contribution to the residual stream
TURN = 0.035  # share of the FFN norm's signs that turn from a layer to the next: inputs of neighbours have cosine 0.93
SEQUENCES, LENGTH = 8, 64  # so many sequences to calibrate on, and as many again to test on; so many tokens in each
STANDARD = Normal(0.0, 1.0)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class PlantedModel:
    """Made-up weights with the interface of a Checkpoint: config, settings, family, names, shape(name), tensor(name).

    Every tensor is made anew from the seed and its name when it is asked for, so that no model need fit in DRAM. Only
    the up projections' biases are kept, once their layer is calibrated.

    predictors: one for each layer that is calibrated
    reports: how good each of these predictors is
    early_shares: for each of these layers but the first, the share of its predicted neurons that are also predicted
        from the input of the layer before
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name, self.seed, self.family = name, seed, OPT
        self.settings = published_config(name)
        self.config: dict[str, Any] = self.settings.to_dict() | {"model_type": "opt"}
        self.rank = round_up(self.settings.hidden_size // 32, INT8_BLOCK)
        with torch.device("meta"):
            state = OPTForCausalLM(self.settings).state_dict()
        self._shapes = {n: tuple(t.shape) for n, t in state.items() if n != "lm_head.weight"}
        self.names = sorted(self._shapes)
        self.predictors: list[LowRankPredictor] = []
        self.reports: list[LayerReport] = []
        self.early_shares: list[float] = []
        self._biases: list[Tensor] = []
        self._before: Tensor | None = None  # the input of the FFN before
        self._hidden = self._embed()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._shapes[name]

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32."""
        shape, part = self._shapes[name], name.rsplit(".", 2)[-2]
        layer = int(name.split(".")[3]) if ".layers." in name else -1
        if name.endswith("fc1.weight"):
            b, a = self._factors(layer)
            return b @ a
        if name.endswith("fc1.bias"):
            while len(self._biases) <= layer:
                self._calibrate(len(self._biases))
            return self._biases[layer]
        if name.endswith("bias"):
            return torch.zeros(shape)
        if part == "embed_positions":
            return SLOW**0.5 * self._slow(*shape) + self._text(shape[0])
        if name == "model.decoder.final_layer_norm.weight":  # random signs: else the head repeats its input
            return (shape[0] * (1 - SLOW)) ** -0.5 * self._noise(name, shape).sign()
        if name.endswith("final_layer_norm.weight"):
            return self._signs(layer)
        if part.endswith("layer_norm"):
            return torch.ones(shape)
        return self._scale(part, shape) * self._noise(name, shape)

    def _scale(self, part: str, shape: tuple[int, ...]) -> float:
        """Standard deviation of a matrix's weights. A product with the matrix is as large as its input, or small if it
        is added to the residual stream."""
        if part == "embed_tokens":
            return (1 - SLOW) ** 0.5
        if part == "fc2":
            return SMALL * (0.01 * shape[1]) ** -0.5
        return (SMALL if part == "out_proj" else 1.0) * shape[1] ** -0.5

    def _noise(self, name: str, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        return torch.randn(shape, generator=generator)

    def _slow(self, rows: int, columns: int) -> Tensor:
        """[rows, columns] of unit variance; a row resembles those before it."""
        noise, keep = self._noise("positions", (rows, columns)), float(np.exp(-1 / MEMORY))
        for i in range(1, rows):
            noise[i] = keep * noise[i - 1] + (1 - keep**2) ** 0.5 * noise[i]
        return noise

    def _text(self, positions: int) -> Tensor:
        """The part of the position embeddings by which each position asks for one random token: [positions, d_model].

        It asks clearly, so that rounding never decides between two tokens. The part is zero where embeddings have
        another width than the layers.
        """
        if self.settings.word_embed_proj_dim != self.settings.hidden_size:
            return torch.zeros(())
        tokens = torch.randint(
            self.settings.vocab_size, (positions,), generator=torch.Generator().manual_seed(self.seed)
        )
        norm = self.tensor("model.decoder.final_layer_norm.weight")
        return STANDS_OUT * norm * self.tensor("model.decoder.embed_tokens.weight")[tokens]

    def _signs(self, layer: int) -> Tensor:
        """The weight of the norm before a layer's FFN: [d_model], 1 or -1."""
        size, share = (self.settings.hidden_size,), STANDARD.icdf(torch.tensor(TURN))
        turns = [torch.where(self._noise(f"signs.{i}", size) < share, -1.0, 1.0) for i in range(layer + 1)]
        return torch.stack(turns).prod(0)

    def _factors(self, layer: int) -> tuple[Tensor, Tensor]:
        """b [ffn, rank] and a [rank, d_model], each row of norm 1, so that every score has variance near 1."""
        b = F.normalize(self._noise(f"b.{layer}", (self.settings.ffn_dim, self.rank)), dim=1)
        return b, F.normalize(self._noise(f"a.{layer}", (self.rank, self.settings.hidden_size)), dim=1)

    def rates(self, layer: int) -> Tensor:
        """How often each neuron of a layer should fire: [ffn], shares of tokens."""
        depth = layer / max(1, self.settings.num_hidden_layers - 1)
        mean = float(np.interp(depth, (0.0, 0.5, 1.0), ACTIVE))
        tail = torch.exp(TAIL * self._noise(f"rates.{layer}", (self.settings.ffn_dim,)) - TAIL**2 / 2)
        return (mean * tail).clamp(1e-5, 0.6)

    def _calibrate(self, layer: int) -> None:
        """Give each neuron of a layer the bias with which it fires at its rate, and report on fresh sequences."""
        prefix = f"model.decoder.layers.{layer}."
        hidden = self._hidden + self._attend(prefix, self._normed(self._hidden))
        # x: [2 * SEQUENCES, LENGTH, d_model]; the second half is only for the report
        x = self._normed(hidden) * self.tensor(prefix + "final_layer_norm.weight")
        b, a = self._factors(layer)
        scores = F.linear(F.linear(x, a), b).flatten(0, 1)
        sample = scores[: SEQUENCES * LENGTH]
        mean, deviation, rates = sample.mean(0), sample.std(0), self.rates(layer)
        bias = -(mean + deviation * -STANDARD.icdf(rates))
        wanted = (PREDICTED_OVER_ACTIVE * rates).clamp(max=0.9)
        predictor = LowRankPredictor.of(a, b, -(mean + deviation * -STANDARD.icdf(wanted)))
        fired = scores[SEQUENCES * LENGTH :] + bias > 0
        data = Activations(x[SEQUENCES:].flatten(0, 1).half(), np.packbits(fired.numpy(), axis=1), len(bias))
        self._biases.append(bias)
        self.predictors.append(predictor)
        self.reports.append(report(predictor, data, LENGTH))
        self._note_early_share(predictor, x)
        h = (scores + bias).relu_().view(*x.shape[:2], -1)
        self._hidden = hidden + F.linear(h, self.tensor(prefix + "fc2.weight"))

    def _note_early_share(self, predictor: LowRankPredictor, x: Tensor) -> None:
        """Note which share of the neurons that are predicted from a layer's own input are also predicted from the input
        of the layer before. x: [sequences, tokens, d_model], the layer's own input."""
        if self._before is not None:
            true, early = predictor.mask(x.flatten(0, 1)), predictor.mask(self._before.flatten(0, 1))
            self.early_shares.append(float((true & early).sum() / true.sum()))
        self._before = x

    def _attend(self, prefix: str, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, self.tensor(f"{prefix}self_attn.{part}_proj.weight")) for part in "qkv")
        heads = (x.shape[0], x.shape[1], self.settings.num_attention_heads, -1)
        q, k, v = (t.view(heads).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(mixed.transpose(1, 2).reshape(x.shape), self.tensor(f"{prefix}self_attn.out_proj.weight"))

    def _embed(self) -> Tensor:
        """The input of the first layer: [2 * SEQUENCES, LENGTH, d_model], of random tokens at different positions."""
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(self.settings.vocab_size, (2 * SEQUENCES, LENGTH), generator=generator)
        tokens = F.embedding(ids, self.tensor("model.decoder.embed_tokens.weight"))
        if "model.decoder.project_in.weight" in self._shapes:
            tokens = F.linear(tokens, self.tensor("model.decoder.project_in.weight"))
        begins = torch.linspace(2, self.settings.max_position_embeddings - LENGTH, 2 * SEQUENCES).long()
        positions = begins[torch.randperm(len(begins), generator=generator), None] + torch.arange(LENGTH)
        return tokens + F.embedding(positions, self.tensor("model.decoder.embed_positions.weight"))

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])

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

        neurons = self.settings.ffn_dim
        return {
            "active": mean(lambda r: r.active), "predicted": mean(lambda r: r.predicted),
            "recall": mean(lambda r: r.recall), "resident": mean(lambda r: r.window_rows[WINDOW - 1]) / neurons,
            "new": mean(lambda r: r.window_rows[WINDOW] - r.window_rows[WINDOW - 1]) / neurons,
            "ahead": float(np.mean(self.early_shares)),
        }  # fmt: skip


def synth(
    name: str, out: Path | str, dtype: str = "bf16", layouts: tuple[str, ...] = LAYOUTS, seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Store:  # fmt: skip
    """Write a planted model of a published size to `out` as a store, one tensor at a time, and open it.

    name: of a published model, such as opt-6.7b
    out: the store's folder
    dtype: fp32, bf16 or fp16
    layouts: how neurons lie on flash; the store has a file for each layout
    seed: of all random numbers
    progress: is told of each step

    The manifest's `planted` has the sparsity that was reached, see PlantedModel.figures. Raises CheckpointError for an
    unknown name and StoreError if `out` can't be written, and then leaves nothing behind.
    """
    planted = PlantedModel(name, seed)

    def finish(folder: Path, up_projections: str) -> dict[str, Any]:
        PredictorSet(planted.predictors, planted.reports, up_projections).save(folder / PREDICTOR)
        copy_files(BUNDLED_MODEL, folder, TOKENIZER)  # any one will do, because the text is noise
        layers = [asdict(layer) for layer in planted.reports]
        return {"planted": {"seed": seed, "window": WINDOW, **planted.figures(), "layers": layers}}

    with torch.no_grad():
        return write_store(planted, name, out, dtype, layouts, finish, progress=progress)
