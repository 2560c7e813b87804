"""Small models with random weights, for families of which none comes with flashlite: to count what they read.

What such a model writes is noise, and that a twentieth of its neurons fires is planted: neither says anything of a
family. Its records, its reads and its products are those of the family's real models, in small.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from flashlite.arguments import is_store
from flashlite.course.manifest import find_course
from flashlite.families.known import family_of
from flashlite.storage.hub import BUNDLED_MODEL
from flashlite.storage.pack import pack
from flashlite.storage.side_files import copy_files
from flashlite.storage.store import Store

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")  # opt-mini's, so that the course's text can be fed
SIZES = {
    "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "pad_token_id": 1,
    "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "gated": LlamaConfig(**SIZES, intermediate_size=2048, hidden_act="relu", mlp_bias=True),
}
QUIET = 1.645  # standard deviations by which biases are lowered: a twentieth of a normal distribution lies above


def stand_in(name: str) -> Store:
    """A model of CONFIGS, packed in the course's folder `.flashlite`, where it is kept. Raises FlashliteError."""
    place = find_course().root / ".flashlite" / name
    if is_store(place):
        return Store(place)
    config = CONFIGS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / f"random-{name}"
        config.save_pretrained(folder)
        weights = random_model(config).state_dict()
        save_file({key: tensor.clone() for key, tensor in weights.items()}, folder / "model.safetensors")
        copy_files(BUNDLED_MODEL, folder, TOKENIZER)
        place.parent.mkdir(exist_ok=True)
        return pack(folder, place, "fp32")


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of transformers' own with random weights, about a twentieth of whose neurons fires."""
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval().requires_grad_(False)
    family = family_of(config.to_dict())
    for weights in model.parameters():
        weights.mul_(4 if weights.ndim == 2 else 1)  # else nearly every text would end in the same loop
    for i in range(config.num_hidden_layers):
        deciding = model.get_submodule(family.layer.format(i) + family.first)
        deciding.bias.fill_(-QUIET * deciding.weight.std() * config.hidden_size**0.5)  # the input's norm is about this
    return model
