"""Attention's and the head's products for a few tokens, by the same threads as the sparse FFN's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from flashlite.engine.kernels.rows import FEW, products


class RowsLinear(nn.Linear):
    """A linear layer that multiplies a few tokens by `products`. More take torch's own product."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output: [..., out_features]. x: [..., in_features]."""
        if x.numel() > FEW * self.in_features or x.requires_grad or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        out = products(x.reshape(-1, self.in_features).float(), self.weight, np.arange(self.out_features))
        if self.bias is not None:
            out.add_(self.bias)
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)


def use_rows(model: nn.Module) -> None:
    """Put a RowsLinear in the place of each linear layer of a model that has no weights yet."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            bias, dtype = layer.bias is not None, layer.weight.dtype
            model.set_submodule(name, RowsLinear(layer.in_features, layer.out_features, bias, "meta", dtype))
