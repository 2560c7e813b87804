"""Random models, called in random ways, against transformers: test_differential.py tries a few, soak.py many."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model, save_checkpoint
from torch import Tensor
from transformers import OPTForCausalLM

import flashlite
from flashlite.engine.stages import LADDER
from flashlite.errors import BudgetError
from flashlite.storage.store import Store

VOCABULARY, POSITIONS = 67, 96
SHAPES: list[dict[str, Any]] = [
    {"hidden_size": 64, "ffn_dim": 256, "word_embed_proj_dim": 64, "num_attention_heads": 4},
    {"hidden_size": 40, "ffn_dim": 72, "word_embed_proj_dim": 24, "num_attention_heads": 5},
    {"hidden_size": 24, "ffn_dim": 130, "word_embed_proj_dim": 56, "num_attention_heads": 1, "num_hidden_layers": 1},
    {"hidden_size": 36, "ffn_dim": 33, "word_embed_proj_dim": 36, "num_attention_heads": 9, "num_hidden_layers": 5},
    {"hidden_size": 48, "ffn_dim": 200, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
]
MODES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    {"num_beams": 3, "length_penalty": 0.4, "early_stopping": True},
    {"num_beams": 4, "num_return_sequences": 2},
    {"do_sample": True, "temperature": 0.8, "top_k": 20},
    {"do_sample": True, "top_p": 0.9, "num_return_sequences": 3},
    {"num_beams": 2, "do_sample": True},
    {"prompt_lookup_num_tokens": 3},
    {"min_new_tokens": 5, "renormalize_logits": True},
]
CACHES: list[dict[str, Any]] = [{}, {}, {"cache_implementation": "static"}, {"use_cache": False}]


@dataclass(frozen=True)
class Pair:
    """A model of transformers and the same one packed."""

    dense: OPTForCausalLM
    store: Store


def make_pair(number: int, dtype: str, folder: Path) -> Pair:
    """Make the pair of SHAPES[number]. dtype: fp32 or bf16, of both models."""
    shape = {"num_attention_heads": 4, "num_hidden_layers": 2} | SHAPES[number]
    model = make_model(number, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, **shape)
    checkpoint = save_checkpoint(model, folder / f"{number}-{dtype}")
    store = flashlite.pack(checkpoint, folder / f"{number}-{dtype}-store", dtype=dtype)
    return Pair(OPTForCausalLM.from_pretrained(checkpoint, dtype=store.dtype).eval(), store)


def make_pairs(folder: Path) -> dict[tuple[int, str], Pair]:
    """Every shape in fp32 and in bf16."""
    return {(i, dtype): make_pair(i, dtype, folder) for i in range(len(SHAPES)) for dtype in ("fp32", "bf16")}


def prompts(choose: random.Random, sequences: int) -> dict[str, Tensor]:
    """Prompts of different lengths, padded at the left."""
    lengths = [choose.randint(1, 24) for _ in range(sequences)]
    ids, mask = torch.full((sequences, max(lengths)), 1), torch.zeros(sequences, max(lengths), dtype=torch.long)
    for i, length in enumerate(lengths):
        ids[i, -length:] = torch.tensor([choose.randrange(3, VOCABULARY) for _ in range(length)])
        mask[i, -length:] = 1
    return {"input_ids": ids, "attention_mask": mask}


def load(choose: random.Random, store: Store) -> OPTForCausalLM:
    """The streaming model at any stage, with any window, in any memory that works."""
    stage, window = choose.randrange(len(LADDER)), choose.choice([1, 2, 5, 9])
    build = partial(flashlite.load, store, stage=stage, window=window, predictor="oracle")
    with pytest.raises(BudgetError) as refused:
        build(dram_budget=1)
    least = int(str(refused.value).partition("works is ")[2].partition(" ")[0])
    return build(dram_budget=least + choose.choice([0, 500, 5_000, 50_000]))


def tokens(model: OPTForCausalLM, seed: int, **given: Any) -> list[list[int]]:
    torch.manual_seed(seed)
    return model.generate(**given).tolist()


def logits(model: OPTForCausalLM, ids: Tensor, **given: Any) -> Tensor:
    """Of a prompt and, one by one, of the last three tokens: [sequences, tokens, vocab]."""
    with torch.no_grad():
        mask = given["attention_mask"]
        out = model(ids[:, :-3], attention_mask=mask[:, :-3])
        parts = [out.logits]
        for i in (2, 1, 0):
            end = ids.shape[1] - i
            step = ids[:, end - 1 : end]
            out = model(step, attention_mask=mask[:, :end], past_key_values=out.past_key_values)
            parts.append(out.logits)
    return torch.cat(parts, 1)[mask.bool()].float()


def trial(seed: int, pairs: dict[tuple[int, str], Pair]) -> None:
    """One random model, called in one random way: the same tokens in fp32, logits within rounding in bf16."""
    choose = random.Random(seed)
    number, dtype = choose.choice(list(pairs))
    pair = pairs[number, dtype]
    given = prompts(choose, choose.choice([1, 1, 2, 3]))
    mode = MODES[choose.randrange(len(MODES))]
    if "prompt_lookup_num_tokens" in mode:  # which transformers has for one sequence and its own kind of cache
        given, cache = {name: part[:1, -1:].repeat(1, 6) for name, part in given.items()}, CACHES[0]
    else:
        cache = choose.choice(CACHES)
    model, what = load(choose, pair.store), f"seed {seed}: shape {number}, {dtype}, {mode}, {cache}"
    if dtype == "fp32":
        settings = {"do_sample": False, "max_new_tokens": choose.randint(5, 14)} | mode | cache
        assert tokens(model, seed, **given, **settings) == tokens(pair.dense, seed, **given, **settings), what
        return
    ids, mask = given["input_ids"], given["attention_mask"]
    more = torch.randint(3, VOCABULARY, (len(ids), 4), generator=torch.Generator().manual_seed(seed))
    ids, mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    found, expected = (logits(m, ids, attention_mask=mask) for m in (model, pair.dense))
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max(), what
