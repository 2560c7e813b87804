"""Exercise 1.3: how many weights selective persistence keeps in DRAM."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashlite.course.checks import Call, expect_each, rng
from flashlite.families.opt import resident_and_streamed

# As published: hidden size, layers, FFN, width of the embedding, all weights
PUBLISHED = {
    "125m": (768, 12, 3072, 768, 125_239_296),
    "350m": (1024, 24, 4096, 512, 331_196_416),
    "1.3b": (2048, 24, 8192, 2048, 1_315_758_080),
    "6.7b": (4096, 32, 16384, 4096, 6_658_473_984),
}


def opt_config(
    d: int, layers: int, ffn: int, embedding: int, vocab: int = 50272, positions: int = 2048, pre_norm: bool = True
) -> Any:
    """What an OPT's config.json says."""
    return SimpleNamespace(
        model_type="opt", hidden_size=d, num_hidden_layers=layers, ffn_dim=ffn, word_embed_proj_dim=embedding,
        vocab_size=vocab, max_position_embeddings=positions, do_layer_norm_before=pre_norm, num_attention_heads=4,
        activation_function="relu", tie_word_embeddings=True, enable_bias=True, layer_norm_elementwise_affine=True,
        _remove_final_layer_norm=False,
    )  # fmt: skip


def tensors(config: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of an OPT, by name."""
    d, ffn, embedding = config.hidden_size, config.ffn_dim, config.word_embed_proj_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens": (config.vocab_size, embedding), "embed_positions": (config.max_position_embeddings + 2, d),
    }  # fmt: skip
    if embedding != d:
        shapes |= {"project_in": (d, embedding), "project_out": (embedding, d)}
    if config.do_layer_norm_before:
        shapes |= {"final_norm.weight": (d,), "final_norm.bias": (d,)}
    for i in range(config.num_hidden_layers):
        for name in ("q", "k", "v", "out"):
            shapes |= {f"{i}.{name}.weight": (d, d), f"{i}.{name}.bias": (d,)}
        for name in ("attention_norm", "ffn_norm"):
            shapes |= {f"{i}.{name}.weight": (d,), f"{i}.{name}.bias": (d,)}
        shapes |= {f"{i}.fc1.weight": (ffn, d), f"{i}.fc1.bias": (ffn,)}
        shapes |= {f"{i}.fc2.weight": (d, ffn), f"{i}.fc2.bias": (d,)}
    return shapes


def count(config: Any) -> tuple[int, int]:
    """Weights kept and streamed, tensor by tensor."""
    sizes = {name: math.prod(shape) for name, shape in tensors(config).items()}
    streamed = sum(size for name, size in sizes.items() if name.endswith(("fc1.weight", "fc2.weight")))
    return sum(sizes.values()) - streamed, streamed


def mistakes(config: Any) -> dict[str, tuple[int, int]]:
    """What the usual mistakes give."""
    (kept, streamed), d, ffn, layers = count(config), config.hidden_size, config.ffn_dim, config.num_hidden_layers
    embedding = config.word_embed_proj_dim
    biases, projections = layers * (ffn + d), 0 if embedding == d else 2 * embedding * d
    off_by = {
        "The head is the token embedding: count it once.": config.vocab_size * embedding,
        "The position embedding is two rows longer than max_position_embeddings.": -2 * d,
        "Each layer is short of 2 * hidden_size, which is what one of its two norms has.": -layers * 2 * d,
        "The norms of the layers are missing.": -layers * 4 * d,
        "A norm has two vectors, weight and bias.": -layers * 2 * d - (d if config.do_layer_norm_before else 0),
        "The biases of the attention matrices are missing.": -layers * 4 * d,
        "The biases of the FFN are missing.": -biases,
        "The FFN's biases are [ffn_dim] and [hidden_size].": layers * (ffn - d),
        "All biases are missing.": -biases - layers * 4 * d,
        "Attention has four matrices: query, key, value and output.": -layers * (d * d + d),
    }
    if projections:
        off_by |= {
            "The two projections between word_embed_proj_dim and hidden_size are missing.": -projections,
            "There are two projections, one into the layers and one out of them.": -projections // 2,
            "The two projections have no bias.": embedding + d,
            "The token embedding is [vocab_size, word_embed_proj_dim].": config.vocab_size * (d - embedding),
        }
    else:
        off_by["There are no projections where word_embed_proj_dim equals hidden_size."] = 2 * d * d
    if embedding > d:
        off_by["Embeddings wider than the layers need the two projections as well as narrower ones."] = -projections
    if embedding < d:
        off_by["Embeddings narrower than the layers need the two projections as well as wider ones."] = -projections
    if config.do_layer_norm_before:
        off_by["The decoder's last norm is missing."] = -2 * d
    else:
        off_by["Without do_layer_norm_before there is no last norm."] = 2 * d
    return {text: (kept + extra, streamed) for text, extra in off_by.items()} | {
        "The FFN's biases stay in DRAM too.": (kept - biases, streamed + biases),
        "Weights are asked for, not bytes.": (2 * kept, 2 * streamed),
        "The order is resident, streamed.": (streamed, kept),
        "The first number is the resident weights alone, not all of them.": (kept + streamed, streamed),
        "A layer's FFN has two matrices.": (kept, streamed // 2),
        "A layer's FFN has two matrices, and both stream.": (kept + streamed // 2, streamed // 2),
    }


def any_config(wider: int, pre_norm: bool) -> Any:
    """A model that nobody published. wider: 1 or -1 where the embedding is wider or narrower than the layers, or 0."""
    random = rng()
    d, layers, ffn, vocab, positions = (int(n) for n in random.permutation(np.arange(20, 90))[:5])
    return opt_config(d, layers, ffn, d + wider * int(random.integers(5, 15)), vocab, positions, pre_norm)


def call(config: Any, what: str) -> Call:
    """A call of resident_and_streamed, which is compared with the count tensor by tensor."""
    return Call(lambda: tuple(resident_and_streamed(config)), count(config), f"{what}: weights", mistakes(config))


def small_models() -> list[Call]:
    """Models with and without projections and a last norm, the plainest first."""
    calls = []
    for wider, pre_norm in ((0, True), (-1, True), (0, False), (-1, False), (1, True), (1, False)):
        config = any_config(wider, pre_norm)
        what = f"word_embed_proj_dim {config.word_embed_proj_dim}, hidden_size {config.hidden_size}, "
        calls.append(call(config, what + f"do_layer_norm_before {pre_norm}"))
    return calls


@pytest.mark.points("1.3", 1)
def test_any_other_model_adds_up() -> None:
    plainest, *others = small_models()
    expect_each([plainest], beside=others)


@pytest.mark.points("1.3", 1)
def test_projections_and_last_norm_are_two_questions() -> None:
    plainest, *others = small_models()
    expect_each(others, beside=[plainest])


@pytest.mark.points("1.3", 1)
def test_published_models_add_up() -> None:
    calls = []
    for name, (d, layers, ffn, embedding, total) in PUBLISHED.items():
        config = opt_config(d, layers, ffn, embedding, pre_norm=name != "350m")
        right = (total - layers * 2 * ffn * d, layers * 2 * ffn * d)
        calls.append(replace(call(config, f"OPT-{name}"), expected=right))
    expect_each(calls, beside=small_models())
