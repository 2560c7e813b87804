"""Train falcon-mini-gelu: a real Falcon of a few million parameters, with GELU as published, on the corpus of opt-mini.

    python tools/train_falcon_mini.py OUT [--steps 2400]

It has Falcon-7B's form: attention with one key and value for all heads beside the FFN, rotary positions, no biases, the
head tied to the embedding. The tokenizer is opt-mini's. OUT becomes a checkpoint folder in the published format (fp16
safetensors) with training.json in it. A training that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from train_opt_mini import encode
from transformers import AutoTokenizer, FalconConfig, FalconForCausalLM

from flashlite.families.falcon import FALCON
from flashlite.storage.hub import BUNDLED_MODEL
from flashlite.training.corpus import corpus
from flashlite.training.distributed import ALONE
from flashlite.training.firing import Firing
from flashlite.training.train_model import Recipe, Training

WIDTH, LAYERS, HEADS, POSITIONS, HELD_OUT_TEXTS = 256, 4, 4, 512, 32


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    args = parser.parse_args()
    torch.set_grad_enabled(True)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    stream, held_out = (torch.from_numpy(encode(list(corpus(held_out=side)), tokenizer)) for side in (False, True))
    texts = held_out[: HELD_OUT_TEXTS * POSITIONS].view(HELD_OUT_TEXTS, POSITIONS).long()
    model = new_model(len(tokenizer))
    recipe = Recipe(steps=args.steps, batch=8, length=POSITIONS, lr=3e-3, decay=0.4, zeros=0.0, every=200)
    training = Training(
        model, Firing(model, FALCON), stream, texts, recipe, ALONE, args.out.with_suffix(".training.safetensors")
    )
    training.run(
        lambda step, loss: print(step, f"{loss:.3f}", flush=True) if step % 20 == 0 else None,
        lambda point: print(point, flush=True),
    )
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    record = {"recipe": asdict(recipe), "corpus_tokens": len(stream), "log": [asdict(point) for point in training.log]}
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
