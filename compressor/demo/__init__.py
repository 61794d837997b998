"""The main job on what this package carries: a small vision transformer and scikit-learn's digits.

``config.json`` and ``model.safetensors`` beside this file are a timm directory that
``examples/train_digits_vit.py`` wrote. It was trained on the training part of ``sklearn:digits``;
the 600 test images that the demo reports on took no part in training.
"""

from __future__ import annotations

from pathlib import Path

from compressor.schema import REPORT_FILE
from compressor.settings import CompressSettings, DataSettings, MethodSettings, ModelSettings

MODEL = Path(__file__).parent
DATA = "sklearn:digits"
DEFAULT_OUT = Path("demo-out")


def demo_settings(
    *,
    method: MethodSettings,
    out: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    limit: int | None = None,
    command: str | None = None,
) -> CompressSettings:
    """Return the demo as a run of `compressor.pipeline.compress_model`.

    Args:
        method: How ranks are chosen.
        out: Directory to write; ``demo-out`` if None, where an earlier demo's may be replaced.
        overwrite: Replace ``out`` whatever it holds.
        seed: Seed of every draw.
        device: Where to compute.
        batch_size: Samples a batch.
        limit: Largest number of test images.
        command: The command line as typed, for the report.
    """
    return CompressSettings(
        model=ModelSettings.model_validate({"model": str(MODEL), "device": device}),
        data=DataSettings(data=DATA, batch_size=batch_size, limit=limit),
        method=method,
        out=DEFAULT_OUT if out is None else out,
        overwrite=overwrite or (out is None and (DEFAULT_OUT / REPORT_FILE).is_file()),
        seed=seed,
        command=command,
    )
