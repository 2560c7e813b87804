"""Train falcon-mini: a real Falcon of a few million parameters, with GELU as published, and then with ReLU.

    python tools/train_falcon_mini.py born GELU                       # from scratch, on the corpus of opt-mini
    python tools/train_falcon_mini.py relufied RELU --init GELU       # `flashlite relufy` on the same corpus
    python tools/train_falcon_mini.py control OTHER --init GELU       # as many steps with GELU, to compare with

It has Falcon-7B's form: attention with one key and value for all heads beside the FFN, rotary positions, no biases, the
head tied to the embedding. The tokenizer is opt-mini's. Each folder becomes a checkpoint in the published format (fp16
safetensors) with training.json in it. A training that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train_opt_mini import encode
from transformers import AutoTokenizer, FalconConfig, FalconForCausalLM, PreTrainedModel

from flashlite.families.falcon import FALCON
from flashlite.storage.hub import BUNDLED_MODEL
from flashlite.training.corpus import corpus
from flashlite.training.distributed import ALONE
from flashlite.training.firing import Firing
from flashlite.training.relufy import RECORD, open_to_relufy, relufy, with_activation
from flashlite.training.train_model import Point, Recipe, Training

WIDTH, LAYERS, HEADS, POSITIONS, HELD_OUT_TEXTS = 256, 4, 4, 512, 32
BORN = Recipe(steps=2000, batch=8, length=POSITIONS, lr=3e-3, decay=0.4, zeros=0.0, every=200)
RELUFIED = Recipe(steps=800, batch=8, length=POSITIONS, lr=1.5e-3, decay=0.7, zeros=0.92, every=50)


def new_model(vocabulary: int) -> FalconForCausalLM:
    """A Falcon of random weights, the same ones each time."""
    torch.manual_seed(0)
    config = FalconConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS, multi_query=True, parallel_attn=True, bias=False, alibi=False,
        new_decoder_architecture=False, activation="gelu", tie_word_embeddings=True, attention_dropout=0.0,
        hidden_dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return FalconForCausalLM(config)


def train(model: PreTrainedModel, stream: Tensor, held_out: Tensor, recipe: Recipe, out: Path) -> dict[str, Any]:
    """Train a model as it is; what is to be recorded of it."""
    state = out.with_suffix(".training.safetensors")
    training = Training(model, Firing(model, FALCON), stream, held_out, recipe, ALONE, state)
    training.run(tell, measured)
    return {"recipe": asdict(recipe), "corpus_tokens": len(stream), "log": [asdict(point) for point in training.log]}


def tell(step: int, loss: float) -> None:
    """A line now and then."""
    if step % 20 == 0:
        print(step, f"{loss:.3f}", flush=True)


def measured(point: Point) -> None:
    """A line for each measurement."""
    print(point, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("born", "relufied", "control"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--init", type=Path, help="the folder of the model that was born with GELU")
    args = parser.parse_args()
    torch.set_grad_enabled(True)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    stream, held_out = (torch.from_numpy(encode(list(corpus(held_out=side)), tokenizer)) for side in (False, True))
    texts = held_out[: HELD_OUT_TEXTS * POSITIONS].view(HELD_OUT_TEXTS, POSITIONS).long()
    if args.phase == "relufied":
        relufy(open_to_relufy(args.init), args.out, stream, texts, RELUFIED, tell=tell, measured=measured)
        return
    if args.phase == "born":
        model, recipe = new_model(len(tokenizer)), BORN
    else:
        model, recipe = with_activation(open_to_relufy(args.init), "gelu"), replace(RELUFIED, zeros=0.0)
    record = train(model, stream, texts, recipe, args.out)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    (args.out / RECORD).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
