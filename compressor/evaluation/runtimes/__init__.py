"""What a model can be timed in, one runtime a file; importing this registers them."""

from compressor.evaluation.runtimes import compile, eager, onnx

__all__ = ["compile", "eager", "onnx"]
