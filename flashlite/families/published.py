"""The models that are known by name, by the configurations that were published: those of the paper's table 3.

Falcon, Llama and Phi have ReLU here in place of their own activation, because they stream only once they were trained
on with it. Falcon's head is not its embedding here, because a planted model asks for the next token by a head of its
own: that is 0.59 GB more in DRAM as bf16, so that the model is a little harder to run than the published one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashlite.errors import CheckpointError
from flashlite.families import opt

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PUBLISHED: dict[str, dict[str, Any]] = {  # config.json, where it differs from what transformers takes for granted
    "falcon-7b": {
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32,
        "num_attention_heads": 71, "ffn_hidden_size": 18176, "multi_query": True, "parallel_attn": True, "bias": False,
        "alibi": False, "new_decoder_architecture": False, "activation": "relu", "tie_word_embeddings": False,
    },
    "llama-2-7b": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "hidden_act": "relu",
    },
    "persimmon-8b": {
        "model_type": "persimmon", "vocab_size": 262144, "hidden_size": 4096, "num_hidden_layers": 36,
        "num_attention_heads": 64, "intermediate_size": 16384, "max_position_embeddings": 16384,
        "qk_layernorm": True, "rope_theta": 25000.0, "partial_rotary_factor": 0.5, "hidden_act": "relu2",
    },
    "phi-2": {
        "model_type": "phi", "vocab_size": 51200, "hidden_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 32, "intermediate_size": 10240, "partial_rotary_factor": 0.4, "bos_token_id": 50256,
        "eos_token_id": 50256, "hidden_act": "relu",
    },
}  # fmt: skip


def check_published(name: str) -> None:
    """Raise CheckpointError unless a model of this name is known."""
    names = [*opt.PUBLISHED, *PUBLISHED]
    if name not in names:
        raise CheckpointError(f"no model is known by the name {name!r:.60}: choose one of {', '.join(names)}")


def published_config(name: str) -> PreTrainedConfig:
    """The configuration of a published model, such as opt-6.7b or phi-2. Raises CheckpointError for an unknown name."""
    check_published(name)
    if name in opt.PUBLISHED:
        return opt.published_config(name)
    from flashlite.families.configured import read_config  # not before: an unknown name is refused without torch
    from flashlite.families.known import family_of

    return read_config(PUBLISHED[name], family_of(PUBLISHED[name]))
