# Solutions of exercises 1.3: flashlite.families.opt as the engine runs it.
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
    # 1.3  Attention and embeddings are used whole for every token, so reading them again for each one would be wasted;
    # of the FFN only a few neurons are. The larger the model, the larger the FFN's share (45 % in 125m, 64.5 % in
    # 6.7b), and the more there is to save.
    # Usual mistakes: counting the head beside the embedding it is tied to; forgetting the two extra positions, the
    # biases, or one of the two norms in a layer; a last norm for 350m, which has none; streaming the FFN's biases.
    d, ffn, embedding, norm = config.hidden_size, config.ffn_dim, config.word_embed_proj_dim, 2 * config.hidden_size
    embeddings = config.vocab_size * embedding + (config.max_position_embeddings + 2) * d
    projections = 0 if embedding == d else 2 * embedding * d
    layer = 4 * (d * d + d) + (ffn + d) + 2 * norm
    last_norm = norm if config.do_layer_norm_before else 0
    resident = embeddings + projections + config.num_hidden_layers * layer + last_norm
    return resident, config.num_hidden_layers * 2 * ffn * d
