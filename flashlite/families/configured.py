"""What a config.json describes: the model without weights, the weights' shapes, and where another FFN goes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.activations import ACT2FN

from flashlite.families.family import Family

LARGEST = {  # beyond any published model, and small enough to be thought through in no time
    "vocab_size": 2**20, "hidden_size": 2**16, "num_hidden_layers": 2**10, "max_position_embeddings": 2**20,
    "num_attention_heads": 2**10, "num_key_value_heads": 2**10, "num_kv_heads": 2**10, "head_dim": 2**16,
    "ffn_dim": 2**18, "intermediate_size": 2**18, "ffn_hidden_size": 2**18, "word_embed_proj_dim": 2**16,
    "n_embed": 2**16,
}  # fmt: skip
NOT_READ = {  # names of code and files, how transformers would load it, and what only classifiers have
    "architectures", "auto_map", "trust_remote_code", "custom_generate", "name_or_path", "transformers_weights",
    "attn_implementation", "experts_implementation", "quantization_config", "model_type", "dtype", "torch_dtype",
    "num_labels", "id2label", "label2id", "pruned_heads", "task_specific_params",
}  # fmt: skip
PRIVATE = {"_remove_final_layer_norm"}  # the one field of this form that says what a model computes
GENERATING = vars(GenerationConfig()).keys()  # settings, which storage/tokenizer.py reads
SENSELESS = (
    StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError,
    AssertionError,
)  # fmt: skip


def read_config(content: dict[str, Any], family: Family) -> PreTrainedConfig:
    """A config.json as transformers' own configuration, but without names of code to load and settings to generate by.

    All other fields are kept, because transformers follows many that its classes don't declare, such as the base of
    rotary positions. Raises ValueError, one line, if a field is senseless.
    """
    for name in LARGEST.keys() & content:
        size = content[name]
        if size is not None and (type(size) is not int or not 1 <= size <= LARGEST[name]):
            raise ValueError(f"{name} is {size!r:.40}, not a whole number from 1 to {LARGEST[name]}")
    kind = CONFIG_MAPPING[family.model_type]
    left_out = NOT_READ | GENERATING - kind.__dataclass_fields__.keys()
    try:
        stock = copy.deepcopy(family.stock(content))
        known = {name: stock[name] for name in stock if name not in left_out and (name[:1] != "_" or name in PRIVATE)}
        return kind.from_dict(known)
    except SENSELESS as error:
        raise ValueError(_one_line(error)) from None


def empty_model(config: PreTrainedConfig, family: Family) -> PreTrainedModel:
    """Transformers' model of a configuration, whose weights have shapes but no data.

    What a module computes once and no checkpoint has, such as the frequencies of rotary positions, is there in float32.
    """
    config = copy.deepcopy(config)
    if getattr(config, family.activation) not in ACT2FN:  # one that only the checkpoint's own code knows
        setattr(config, family.activation, "relu")
    with torch.device("meta"):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    for name, module in list(model.named_modules()):
        if module._non_persistent_buffers_set:
            _check_computed(module, config.hidden_size)
            model.set_submodule(name, type(module)(config))
    return model


def _check_computed(module: nn.Module, largest: int) -> None:
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.numel() > largest:
            raise ValueError(f"{name} would have {buffer.numel()} numbers, more than hidden_size")


def expected_shapes(config: PreTrainedConfig, family: Family) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that a model needs, by name; the head is one of them only if it isn't the embedding.

    Raises ValueError, one line, if there is no such model.
    """
    one_layer = copy.deepcopy(config)
    one_layer.num_hidden_layers = 1  # all are alike
    try:
        state = empty_model(one_layer, family).state_dict()
    except SENSELESS as error:
        raise ValueError(_one_line(error)) from None
    if config.tie_word_embeddings:
        del state[family.head]
    first, layers = family.layer.format(0), range(config.num_hidden_layers)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    alike = {name.removeprefix(first): shapes.pop(name) for name in list(shapes) if name.startswith(first)}
    return shapes | {family.layer.format(i) + name: shape for i in layers for name, shape in alike.items()}


def install(family: Family, layer: nn.Module, ffn: nn.Module) -> None:
    """Put an FFN that takes [tokens, d_model] in the place of a layer's own."""
    first, *others = family.ffn
    setattr(layer, first, ffn if family.flattens else Flattened(ffn))
    for name in others:
        setattr(layer, name, nn.Identity())


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Put what modules compute once, such as the frequencies of rotary positions, on a device."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


class Flattened(nn.Module):
    """An FFN of [sequences * tokens, d_model] where a layer gives [sequences, tokens, d_model]."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        """x: [sequences, tokens, d_model]. Returns the FFN's output, the same shape."""
        return self.ffn(x.reshape(-1, x.shape[-1])).view(x.shape)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
