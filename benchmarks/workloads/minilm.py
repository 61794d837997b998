"""all-MiniLM-L6-v2, fine-tuned on two sets of texts: 36 linear layers, 10.6 M weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.workloads import WORKLOADS, Settings, Workload
from compressor.settings import DataSettings, ModelSettings

TOKENS = 64


def _settings(name: str, paths: Mapping[str, Path]) -> Settings:
    return (
        ModelSettings(model=str(paths[f"{name}-model"]), device="cpu"),
        DataSettings(data=str(paths[f"{name}-data"]), max_length=TOKENS, batch_size=32),
    )


for name, title in (
    ("minilm-r52", "MiniLM, Reuters R52"),
    ("minilm-second-text", "MiniLM, second set of texts"),
):
    WORKLOADS.register(name)(
        Workload(
            name=name,
            title=title,
            budgets=("layers=60%", "layers=40%", "layers=25%", "layers=12%"),
            settings=lambda paths, name=name: _settings(name, paths),  # type: ignore[misc]
            places={
                f"{name}-model": "a MiniLM fine-tuned on these texts, for instance by "
                "benchmarks/finetune_text.py",
                f"{name}-data": "tables train and test of the texts and their labels",
            },
        )
    )
