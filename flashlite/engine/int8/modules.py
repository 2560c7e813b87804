"""The modules of a model that hold matrices in int8, in the place of torch's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashlite.engine.ffn import refuse_gradient
from flashlite.engine.int8.product import row_product, row_sum
from flashlite.engine.resident import FlashEmbedding
from flashlite.families.family import Family
from flashlite.storage.int8.resident import scale_name


class Int8Linear(nn.Module):
    """A linear layer with weights in int8.

    weight: [out, in] int8
    scale: [out] float32
    bias: [out] float32, or none
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        for name, tensor in (("weight", weight), ("weight_scale", scale), ("bias", bias)):
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in]. Returns [..., out] float32, or what autocast's products are under autocast.

        Raises FlashliteError where a gradient is asked for.
        """
        refuse_gradient(x)
        kind = x.device.type
        with torch.autocast(kind, enabled=False):
            flat = x.reshape(-1, self.in_features).float()
            out = row_product(flat, self.weight, self.weight_scale, self.bias).view(*x.shape[:-1], -1)
        return out.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else out


class Int8Down(nn.Module):
    """An FFN's down projection with weights in int8, a neuron a row, as in a record.

    weight: [ffn, d_model] int8
    scale: [ffn] float32
    bias: [d_model] float32, or none
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.shape
        for name, tensor in (("weight", weight), ("weight_scale", scale), ("bias", bias)):
            self.register_buffer(name, tensor)

    def forward(self, h: Tensor) -> Tensor:
        """h: [..., ffn]. Returns [..., d_model] float32."""
        out = row_sum(h.reshape(-1, self.in_features).float(), self.weight, self.weight_scale)
        return (out if self.bias is None else out.add_(self.bias)).view(*h.shape[:-1], -1)


class Int8Embedding(nn.Module):
    """A token embedding in int8.

    weight: [vocabulary, width] int8
    scale: [vocabulary] float32
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of tokens. ids: [sequences, tokens] int64. Returns [sequences, tokens, width] float32."""
        return _scaled(F.embedding(ids, self.weight), self.weight_scale, ids)


class Int8FlashEmbedding(nn.Module):
    """A token embedding in int8 whose rows are read when a text needs them.

    rows: reads them
    scale: [vocabulary] float32
    """

    weight_scale: Tensor

    def __init__(self, rows: FlashEmbedding, scale: Tensor) -> None:
        super().__init__()
        self.rows, self.num_embeddings = rows, rows.num_embeddings
        self.register_buffer("weight_scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """See Int8Embedding. Raises ReadError."""
        return _scaled(self.rows(ids), self.weight_scale, ids)


def _scaled(rows: Tensor, scale: Tensor, ids: Tensor) -> Tensor:
    return rows.float().mul_(scale[ids].unsqueeze(-1))


def install_int8(model: nn.Module, family: Family, weights: Mapping[str, Tensor]) -> None:
    """Put modules with int8 weights into a model in the place of its linear layers and of its token embedding.

    model: a FlashEmbedding stands where its token embedding stays on flash, and other modules where FFNs stream
    weights: by name; a head that is the embedding shares its memory, and a down projection has a neuron a row
    """
    place, embedding = family.embedding_weight.removesuffix(".weight"), family.embedding_weight
    found, scale = model.get_submodule(place), weights[scale_name(embedding)]
    if isinstance(found, FlashEmbedding):
        model.set_submodule(place, Int8FlashEmbedding(found, scale))
    else:
        model.set_submodule(place, Int8Embedding(weights[embedding], scale))
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]:
        matrix = f"{name}.weight"
        held = embedding if matrix == family.head and matrix not in weights else matrix
        kind = Int8Down if name.endswith(f".{family.down}") else Int8Linear
        model.set_submodule(name, kind(weights[held], weights[scale_name(held)], weights.get(f"{name}.bias")))
