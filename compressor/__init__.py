"""Post-hoc low-rank compression of pretrained models, guided by neural collapse.

The public verbs are imported when they are first used, so that ``import compressor`` is quick. It
also lets transformers load the directories that this package saves, whichever is imported first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from compressor.autoregister import register_with_transformers

if TYPE_CHECKING:
    from compressor.api import Compression, compress
    from compressor.checkpoint.export.run import export
    from compressor.checkpoint.load import apply_, load
    from compressor.evaluation.loop import Evaluation, evaluate
    from compressor.methods.measurement import Measurement
    from compressor.methods.plan import Plan, read_plan
    from compressor.methods.recover import Recovery, recover
    from compressor.quantization import quantize_
    from compressor.saving import save
    from compressor.stages import factorize, measure, plan

_HOMES = {
    "Compression": "compressor.api",
    "Evaluation": "compressor.evaluation.loop",
    "Measurement": "compressor.methods.measurement",
    "Plan": "compressor.methods.plan",
    "apply_": "compressor.checkpoint.load",
    "Recovery": "compressor.methods.recover",
    "compress": "compressor.api",
    "evaluate": "compressor.evaluation.loop",
    "export": "compressor.checkpoint.export.run",
    "factorize": "compressor.stages",
    "load": "compressor.checkpoint.load",
    "measure": "compressor.stages",
    "plan": "compressor.stages",
    "quantize_": "compressor.quantization",
    "read_plan": "compressor.methods.plan",
    "recover": "compressor.methods.recover",
    "save": "compressor.saving",
}

__all__ = [
    "Compression",
    "Evaluation",
    "Measurement",
    "Plan",
    "Recovery",
    "apply_",
    "compress",
    "evaluate",
    "export",
    "factorize",
    "load",
    "measure",
    "plan",
    "quantize_",
    "read_plan",
    "recover",
    "save",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_transformers()
