"""The vision transformer that this package carries, on scikit-learn's digits; needs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.workloads import WORKLOADS, Settings, Workload
from compressor.demo import DATA, MODEL
from compressor.settings import DataSettings, ModelSettings


def _settings(paths: Mapping[str, Path]) -> Settings:
    del paths
    return ModelSettings(model=str(MODEL), device="cpu"), DataSettings(data=DATA, batch_size=64)


WORKLOADS.register("digits-vit")(
    Workload(
        name="digits-vit",
        title="ViT, digits (bundled)",
        budgets=("layers=25%", "layers=12%", "layers=6%", "layers=3%"),
        settings=_settings,
        places={},
    )
)
