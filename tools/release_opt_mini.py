"""Make the bundled model out of a trained checkpoint: python tools/release_opt_mini.py CHECKPOINT.

Copies the checkpoint to flashlite/opt_mini, trains its predictors, measures both on held-out text and writes the model
card. The card describes the training by the training.json that train_opt_mini.py left in the checkpoint. A checkpoint
whose training went on from the first weights has FIRST_PHASE before it.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from train_opt_mini import HELD_OUT_TEXTS, POSITIONS, encode
from transformers import AutoTokenizer, OPTForCausalLM

import flashlite
from flashlite.bench.machine import host
from flashlite.engine.predictor_file import LayerReport
from flashlite.storage.hub import BUNDLED_MODEL
from flashlite.storage.store import PREDICTOR
from flashlite.storage.tokenizer import token_windows
from flashlite.training.corpus import corpus
from flashlite.training.evaluate import evaluate
from flashlite.training.train_predictor import train_predictors

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FIRST_PHASE = {  # by a first form of the recipe, whose first 400 steps had one sparsity weight for all layers
    "start": "scratch", "steps": 2072, "planned": 2072, "tokens": 2072 * 8192, "lr": 0.003, "decay": 0.3,
    "target": 0.05, "seed": 0, "minutes": 120,
}  # fmt: skip
RECALL, TRAIN_TOKENS, HELD_OUT_TOKENS = 0.975, 100_000, 64 * 512

CARD = """# opt-mini

A real OPT in the published format (fp16 safetensors, used as fp32), small enough to ship: {parameters:.1f} M
parameters, vocabulary 4096 (byte-level BPE), d_model 512, 6 layers, ffn 2048, 8 heads, 512 positions. It loads with
`AutoModelForCausalLM.from_pretrained` and continues Python source.

## Data

The Python source of the standard library and of the course's own packages (`flashlite/training/corpus.py` lists them),
without licence headers and duplicates: {corpus_tokens:.1f} M tokens. A file is **held out** if the md5 of its
base name is 0 modulo 100. No weight and no predictor was trained on held-out files; predictors are calibrated on one
half of the held-out texts named below and reported on the other.

The sources' own licences apply to them: PSF (standard library), BSD (numpy, torch, sympy, networkx, mpmath, pygments),
Apache-2.0 (transformers, huggingface_hub), MIT (fontTools, pip, setuptools, rich), HPND (Pillow), and matplotlib's.

## Training

`tools/train_opt_mini.py`: bf16 weights with fp32 masters, Muon for the block matrices and AdamW for the rest, 8192
tokens a step, warm-up, constant, linear decay. A **sparsity term** brings so small a model to where large OPTs are by
themselves: per layer, the soft share of active neurons times a weight that rises while more than the target share of
that layer's neurons fire.

| phase | start | steps | planned | tokens | learning rate | falls over the last | target active | seed | wall minutes |
|---|---|---|---|---|---|---|---|---|---|
{phases}

{tokens:.1f} M tokens in all, on two cores of {processor}, shared with other work. The script trains from scratch as
well: `python tools/train_opt_mini.py OUT --steps 4000`. Phase 1, by a first form of the recipe, began with one common
sparsity weight, which left layer 1 sparser than was wanted.

## Held-out figures

Loss **{held_out_loss:.4f} nats a token** (perplexity {perplexity:.2f}) on the first {texts} texts of {positions}
held-out tokens, in fp32 from these fp16 weights.

Predictors: low rank, int8, trained on {train_tokens} tokens. Perplexity on {evaluated} held-out tokens: dense
{dense:.4f}, with predicted neurons alone {predicted:.4f} ({change:+.2%}).

| layer | active | predictor's rank | predicted | recall | false negatives | false positives |
|---|---|---|---|---|---|---|
{layers}

Mean active: {mean_active:.2%}.
"""


def held_out_loss(folder: Path) -> float:
    """Loss in nats a token of a checkpoint in fp32, on the first HELD_OUT_TEXTS held-out texts."""
    model, tokenizer = (
        OPTForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    stream = torch.from_numpy(encode(list(corpus(held_out=True)), tokenizer).astype("int64"))
    total = 0.0
    for i in range(HELD_OUT_TEXTS):
        text = stream[i * POSITIONS : (i + 1) * POSITIONS + 1]
        with torch.no_grad():
            logits = model(text[None, :-1]).logits
        total += torch.nn.functional.cross_entropy(logits[0], text[1:]).item()
    return total / HELD_OUT_TEXTS


def phases_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The phases of a training, first to last. record: the training.json that the last phase left."""
    before = phases_of(record["before"]) if "before" in record else [FIRST_PHASE] if record["init"] else []
    done = record["log"][-1]
    last = {"start": f"phase {len(before)}" if before else "scratch", "steps": done["step"], "planned": record["steps"]}
    last |= {key: record[key] for key in ("lr", "decay", "target", "seed")}
    return [*before, last | {"tokens": done["step"] * record["tokens_a_step"], "minutes": done["seconds"] / 60}]


def phase_rows(history: list[dict[str, Any]]) -> str:
    """The rows of the card's table of phases."""
    return "\n".join(
        f"| {i} | {p['start']} | {p['steps']} | {p['planned']} | {p['tokens'] / 1e6:.1f} M | {p['lr']:g} | "
        f"{p['decay']:.0%} | {p['target']:.1%} | {p['seed']} | {p['minutes']:.0f} |"
        for i, p in enumerate(history, 1)
    )


def layer_rows(reports: list[LayerReport]) -> str:
    """The rows of the card's table of layers."""
    return "\n".join(
        f"| {i} | {r.active:.2%} | {r.rank} | {r.predicted:.2%} | {r.recall:.2%} | {r.false_negatives:.2%} | "
        f"{r.false_positives:.2%} |"
        for i, r in enumerate(reports)
    )


def main() -> None:
    torch.set_grad_enabled(True)
    checkpoint = Path(sys.argv[1])
    for name in FILES:
        shutil.copyfile(checkpoint / name, BUNDLED_MODEL / name)
    config = json.loads((checkpoint / "config.json").read_text()) | {"dtype": "float32"}  # in which the course uses it
    (BUNDLED_MODEL / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (BUNDLED_MODEL / PREDICTOR).unlink(missing_ok=True)
    record = json.loads((checkpoint / "training.json").read_text())
    phases = phases_of(record)
    log = record["log"]
    with tempfile.TemporaryDirectory() as folder:
        store = flashlite.pack(BUNDLED_MODEL, Path(folder) / "store")
        train, held_out = list(corpus(held_out=False)), list(corpus(held_out=True))
        for sources in (train, held_out):
            random.Random(0).shuffle(sources)
        held_out_texts = token_windows(held_out, store, HELD_OUT_TOKENS)
        texts = token_windows(train, store, TRAIN_TOKENS)
        predictors = train_predictors(store, texts, held_out_texts, RECALL, progress=lambda s: print(s, flush=True))
        predictors.save(store.path / PREDICTOR)
        result = evaluate(store, held_out_texts)
        shutil.copyfile(store.path / PREDICTOR, BUNDLED_MODEL / PREDICTOR)
        parameters = store.weight_bytes / 4 / 1e6
    measured, reports = held_out_loss(BUNDLED_MODEL), list(predictors.reports)
    card = CARD.format(
        parameters=parameters, corpus_tokens=record["corpus_tokens"] / 1e6, phases=phase_rows(phases),
        tokens=sum(p["tokens"] for p in phases) / 1e6, processor=host().processor,
        held_out_loss=measured, perplexity=torch.tensor(measured).exp().item(), texts=HELD_OUT_TEXTS,
        positions=POSITIONS, train_tokens=texts.numel(), dense=result.dense_perplexity,
        predicted=result.predicted_perplexity, change=result.predicted_perplexity / result.dense_perplexity - 1,
        evaluated=result.tokens, layers=layer_rows(reports), mean_active=sum(r.active for r in reports) / len(reports),
    )  # fmt: skip
    (BUNDLED_MODEL / "README.md").write_text(card)
    figures = {"held_out_loss": measured, "active": [r.active for r in reports], **vars(result)}
    (BUNDLED_MODEL / "training.json").write_text(
        json.dumps({"phases": phases, "log_of_last": log, "released": figures}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
