"""Weights in int8: how they are rounded, and which tensors of a store they become."""
