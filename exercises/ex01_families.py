# Exercises 1.3. With `--impl ref,ex01=mine` this file takes the place of flashlite.families.opt.
# Everything without a TODO is provided, and runs as it stands.
"""OPT: its names, its published sizes, and what may be streamed of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashlite.errors import CheckpointError
from flashlite.families.family import Family

if TYPE_CHECKING:
    from transformers import OPTConfig

OPT = Family(
    model_type="opt",
    first="fc1",
    down="fc2",
    layers="model.decoder.layers",
    positions="embed_positions",
    ffn=("fc1", "activation_fn", "fc2"),
    flattens=True,
    neurons="ffn_dim",
    activation="activation_function",
)


# name: hidden size, layers, attention heads, width of the embedding (Zhang et al. 2022, table 1, and the checkpoints)
PUBLISHED = {
    "opt-125m": (768, 12, 12, 768), "opt-350m": (1024, 24, 16, 512), "opt-1.3b": (2048, 24, 32, 2048),
    "opt-2.7b": (2560, 32, 32, 2560), "opt-6.7b": (4096, 32, 32, 4096), "opt-13b": (5120, 40, 40, 5120),
    "opt-30b": (7168, 48, 56, 7168), "opt-66b": (9216, 64, 72, 9216),
}  # fmt: skip


def check_published(name: str) -> None:
    """Raise CheckpointError unless an OPT of this name was published."""
    if name not in PUBLISHED:
        raise CheckpointError(f"no OPT named {name!r} was published: choose one of {', '.join(PUBLISHED)}")


def published_config(name: str) -> OPTConfig:
    """The configuration of a published OPT, such as opt-6.7b. Raises CheckpointError if there is none of that name."""
    from transformers import OPTConfig

    check_published(name)
    d, layers, heads, embedding = PUBLISHED[name]
    return OPTConfig(
        vocab_size=50272, hidden_size=d, num_hidden_layers=layers, ffn_dim=4 * d, num_attention_heads=heads,
        max_position_embeddings=2048, word_embed_proj_dim=embedding, do_layer_norm_before=name != "opt-350m",
    )  # fmt: skip


def resident_and_streamed(config: OPTConfig) -> tuple[int, int]:
    """How many of an OPT's weights selective persistence keeps in DRAM, and how many still stream for each token.

    Streamed are the two matrices [ffn_dim, hidden_size] of every layer's FFN. Resident is all else: the token embedding
    [vocab_size, word_embed_proj_dim], which is the head too and counts once; the position embedding, two rows longer
    than max_position_embeddings; two projections without bias between word_embed_proj_dim and hidden_size, where these
    differ; in every layer four attention matrices, all biases, and two norms of two vectors each; and the decoder's
    last norm, which models with do_layer_norm_before have. (Paper: section 3.1, selective persistence)
    """
    # TODO 1.3  the bytes that selective persistence saves (3 points, 15 minutes, paper section 3.1)
    # Selective persistence keeps everything but the FFN's matrices in DRAM. Count an OPT's weights from its
    # configuration: return (resident, streamed), two ints, numbers of weights; times 2 they are bytes in fp16. Together
    # they are all weights of the model, each counted once.
    # The docstring lists which weights there are. Sizes that it doesn't spell out: an attention matrix (query, key,
    # value, output) is [hidden_size, hidden_size], each with a bias [hidden_size]; the FFN's biases are [ffn_dim] for
    # the up projection and [hidden_size] for the down projection; a norm's two vectors are [hidden_size] each. All
    # biases are resident.
    # Example: a model of 1 layer with a last norm:
    #   vocab_size 10, hidden_size 4, word_embed_proj_dim 4, ffn_dim 8, max_position_embeddings 6
    #   embeddings 72; the layer 108; last norm 8   -> resident 188
    #   the FFN's matrices                          -> streamed 64
    # OPT-125m: 68.6 million resident, 56.6 million streamed: it can't run in half of its size this way.
    # Provided: config has hidden_size, ffn_dim, num_hidden_layers, vocab_size, word_embed_proj_dim,
    # max_position_embeddings and do_layer_norm_before.
    # In the engine: flashlite estimate opt-6.7b --drive 870 --impl ref,ex01=mine
    raise NotImplementedError("exercise 1.3: delete this line and write resident_and_streamed, see the TODO above")
