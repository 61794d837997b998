"""The kinds of budgets, one a file; importing this registers them."""

from compressor.methods.budgets import flops, layers, params, size

__all__ = ["flops", "layers", "params", "size"]
