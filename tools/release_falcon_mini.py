"""Make the two bundled Falcons: python tools/release_falcon_mini.py GELU RELU CONTROL.

GELU, RELU, CONTROL: the checkpoints that train_falcon_mini.py made as `born`, `relufied` and `control`. The first two
are copied to flashlite/falcon_mini_gelu and flashlite/falcon_mini, with cards made from their training.json; the second
gets predictors.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from release_opt_mini import FILES, HELD_OUT_TOKENS, RECALL, TRAIN_TOKENS, layer_rows
from train_falcon_mini import HELD_OUT_TEXTS, POSITIONS

import flashlite
from flashlite.storage.hub import BUNDLED
from flashlite.storage.store import PREDICTOR
from flashlite.storage.tokenizer import token_windows
from flashlite.training.corpus import corpus
from flashlite.training.evaluate import Evaluation, evaluate
from flashlite.training.relufy import RECORD
from flashlite.training.train_predictor import train_predictors

GELU_CARD = """# falcon-mini-gelu

A real Falcon in the published format (fp16 safetensors, used as fp32), small enough to ship, with GELU as Falcons are
published: {parameters:.1f} M parameters, vocabulary 4096 (opt-mini's tokenizer), d_model 256, 4 layers, ffn 1024, 4
heads that share one key and value, 512 positions, attention beside the FFN. It can't be streamed, because GELU leaves
nothing at zero: it is there to be relufied, which is what [falcon-mini](../falcon_mini/README.md) shows.

Trained by `tools/train_falcon_mini.py born` on opt-mini's corpus (its [card](../opt_mini/README.md) lists the
sources, their licences and what is held out): {steps} steps of {batch} texts of {length} tokens, {tokens:.1f} M
tokens, AdamW, learning rate {lr:g}, seed {seed}, {minutes:.0f} minutes of two cores that others used as well.

Perplexity on the first {texts} texts of {positions} held-out tokens: **{perplexity:.3f}**.
"""

RELU_CARD = """# falcon-mini

[falcon-mini-gelu](../falcon_mini_gelu/README.md) after `flashlite relufy`: ReLU in place of GELU, trained on for
{steps} steps of {batch} texts of {length} tokens ({tokens:.1f} M tokens, learning rate {lr:g}, seed {seed},
{minutes:.0f} minutes of two cores that others used as well) on the same corpus, with a term of the loss that presses
until {wanted:.0%} of a layer's neurons are zero. It streams.

| on the first {texts} texts of {positions} held-out tokens | perplexity | zeros |
|---|---|---|
| as born, with GELU | {born:.3f} | 0 % |
| ReLU in place of GELU, not trained on | {before:.3f} | {zeros_before:.1%} |
| **trained on** | **{after:.3f}** ({change:+.1%}) | **{zeros_after:.1%}** |
| for comparison: trained on for as long, with GELU | {control:.3f} | 0 % |

So at equal training ReLU costs {cost:+.1%} here. Predictors: low rank, int8, trained on {train_tokens} tokens.
Perplexity on {evaluated} held-out tokens: dense {dense:.4f}, with predicted neurons alone {predicted:.4f}
({predicted_change:+.2%}).

| layer | active | predictor's rank | predicted | recall | false negatives | false positives |
|---|---|---|---|---|---|---|
{layers}
"""


def record_of(folder: Path) -> dict[str, Any]:
    """What a training left."""
    return json.loads((folder / RECORD).read_text())


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint, to be used in float32."""
    target.mkdir(exist_ok=True)
    for name in (*FILES, RECORD):
        shutil.copyfile(source / name, target / name)
    config = json.loads((source / "config.json").read_text()) | {"dtype": "float32"}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (target / PREDICTOR).unlink(missing_ok=True)


def mean(values: Sequence[float]) -> float:
    """Of a few numbers."""
    return sum(values) / len(values)


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """What both cards say of a training."""
    recipe = record["recipe"]
    tokens = recipe["steps"] * recipe["batch"] * recipe["length"]
    minutes = record["log"][-1]["seconds"] / 60
    return recipe | {"tokens": tokens / 1e6, "minutes": minutes, "texts": HELD_OUT_TEXTS, "positions": POSITIONS}


def add_predictors(model: Path) -> tuple[int, Evaluation, str]:
    """Train a bundled model's predictors. Returns the tokens, how good they are, and the card's table of layers."""
    with tempfile.TemporaryDirectory() as folder:
        store = flashlite.pack(model, Path(folder) / "store")
        held_out = token_windows(list(corpus(held_out=True))[::-1], store, HELD_OUT_TOKENS)
        texts = token_windows(list(corpus(held_out=False))[::7], store, TRAIN_TOKENS)
        predictors = train_predictors(store, texts, held_out, RECALL, progress=lambda line: print(line, flush=True))
        predictors.save(store.path / PREDICTOR)
        shutil.copyfile(store.path / PREDICTOR, model / PREDICTOR)
        return texts.numel(), evaluate(store, held_out), layer_rows(list(predictors.reports))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("gelu", "relu", "control"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    torch.set_grad_enabled(True)
    born, relufied, control = (record_of(folder) for folder in (args.gelu, args.relu, args.control))
    gelu, relu = BUNDLED["falcon-mini-gelu"], BUNDLED["falcon-mini"]
    copy(args.gelu, gelu)
    copy(args.relu, relu)
    parameters = (gelu / "model.safetensors").stat().st_size / 2e6
    perplexity = born["log"][-1]["perplexity"]
    (gelu / "README.md").write_text(GELU_CARD.format(parameters=parameters, perplexity=perplexity, **facts(born)))
    train_tokens, result, layers = add_predictors(relu)
    before, after = relufied["log"][0], relufied["log"][-1]
    other, was = control["log"][-1]["perplexity"], relufied["born"]["perplexity"]
    card = RELU_CARD.format(
        wanted=relufied["recipe"]["zeros"], born=was, before=before["perplexity"], after=after["perplexity"],
        change=after["perplexity"] / was - 1, zeros_before=mean(before["zeros"]), zeros_after=mean(after["zeros"]),
        control=other, cost=after["perplexity"] / other - 1, train_tokens=train_tokens, dense=result.dense_perplexity,
        predicted=result.predicted_perplexity, evaluated=result.tokens, layers=layers,
        predicted_change=result.predicted_perplexity / result.dense_perplexity - 1, **facts(relufied),
    )  # fmt: skip
    (relu / "README.md").write_text(card)
    assert math.isclose(was, perplexity, rel_tol=0.01), "RELU was not made of GELU"


if __name__ == "__main__":
    main()
