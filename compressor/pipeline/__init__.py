"""What the commands call: one verb a file, from what a person names to what is reported."""

from compressor.pipeline.compare import compare_models
from compressor.pipeline.compress import compress_model
from compressor.pipeline.evaluate import evaluate_model
from compressor.pipeline.inspect import inspect_model
from compressor.pipeline.measure import measure_model
from compressor.pipeline.plan import plan_model

__all__ = [
    "compare_models",
    "compress_model",
    "evaluate_model",
    "inspect_model",
    "measure_model",
    "plan_model",
]
