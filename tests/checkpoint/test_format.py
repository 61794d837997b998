from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor.checkpoint.format import (
    FORMAT_VERSION,
    LowRankConfig,
    LowRankLayer,
    find_lowrank,
    parse_lowrank,
    read_config,
)
from compressor.errors import CheckpointError

BLOCK = LowRankConfig(layers={"a.b": LowRankLayer(kind="linear", rank=3, bias=True)})


def test_survives_json() -> None:
    text = json.dumps(BLOCK.model_dump(mode="json"))
    assert parse_lowrank(json.loads(text), where="x") == BLOCK


def test_newer_version_is_refused_before_its_keys_are_judged() -> None:
    newer = {"format_version": FORMAT_VERSION + 1, "unheard": 1}
    with pytest.raises(CheckpointError, match="pip install --upgrade compressor"):
        parse_lowrank(newer, where="x")


@pytest.mark.parametrize(
    ("layers", "key"),
    [
        ({"a": {"kind": "linear", "rank": 0, "bias": True}}, r"layers\.a\.rank"),
        ({"a": {"kind": "linear", "rank": 2}}, r"layers\.a\.bias"),
        ({"a": {"kind": "linear", "rank": 2, "bias": True, "x": 1}}, r"layers\.a\.x"),
    ],
)
def test_malformed_block_names_the_key(layers: dict[str, object], key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        parse_lowrank({"layers": layers}, where="x")


def test_finds_the_block_of_each_framework() -> None:
    block = BLOCK.model_dump(mode="json")
    cases = {
        "transformers": {"model_type": "bert", "quantization_config": block},
        "timm": {"architecture": "test_vit", "lowrank": block},
        "torch": {"framework": "torch", "lowrank": block},
    }
    for framework, config in cases.items():
        assert find_lowrank(config, where="x") == (framework, BLOCK)
    assert find_lowrank({"model_type": "bert"}, where="x") is None
    assert find_lowrank({"quantization_config": {"quant_method": "gptq"}}, where="x") is None


def test_config_must_be_a_json_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object, found list"):
        read_config(tmp_path)
