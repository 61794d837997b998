"""The kinds of budgets, one a file; importing this registers them."""

from compressor.methods.budgets import drop, flops, latency, layers, params, size

__all__ = ["drop", "flops", "latency", "layers", "params", "size"]
