from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compressor.errors import ModelError
from compressor.models.weights import (
    find_weight_files,
    floating_dtypes,
    hash_files,
    read_header,
    read_state_dict,
    refuse_non_finite,
    refuse_quantized,
)

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2).half()}


def written(path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_reads_state_and_header_of_each_form(suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"w{suffix}")
    state = read_state_dict(path)
    assert state.keys() == STATE.keys()
    assert torch.equal(state["a.weight"], STATE["a.weight"])
    header = read_header([path])
    assert header["a.weight"].shape == (2, 3)
    assert floating_dtypes(header) == {"a.weight": torch.float32, "a.bias": torch.float16}
    assert all(t.is_meta for t in read_state_dict(path, device="meta").values())


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "state_dict_ema"])
def test_unwraps_training_checkpoints(wrapper: str, tmp_path: Path) -> None:
    prefixed = {f"module.{key}": value for key, value in STATE.items()}
    torch.save({wrapper: prefixed, "epoch": 3}, tmp_path / "c.pth")
    assert read_state_dict(tmp_path / "c.pth").keys() == STATE.keys()


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    averaged = {"a": torch.ones(1)}
    torch.save({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": averaged}, tmp_path / "c.pt")
    assert read_state_dict(tmp_path / "c.pt")["a"].item() == 1


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(1), "b": torch.ones(2)}, tmp_path / "w.safetensors")
    assert read_state_dict(tmp_path / "w.safetensors").keys() == {"module.a", "b"}


def test_refuses_a_pickled_module_with_advice(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"pickled module.*state_dict.*safetensors"):
        read_state_dict(tmp_path / "m.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 10, 100])
def test_refuses_a_truncated_file(suffix: str, keep: int, tmp_path: Path) -> None:
    path = written(tmp_path / f"w{suffix}")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"w.*(truncated|pickled)"):
        read_header([path])
    with pytest.raises(ModelError):
        read_state_dict(path)


def test_refuses_what_is_no_state_dict(tmp_path: Path) -> None:
    torch.save({"a": 1, "b": torch.ones(1)}, tmp_path / "c.pt")
    with pytest.raises(ModelError, match="no state dict: a hold"):
        read_state_dict(tmp_path / "c.pt")
    torch.save([torch.ones(1)], tmp_path / "l.pt")
    with pytest.raises(ModelError, match="holds list"):
        read_state_dict(tmp_path / "l.pt")
    with pytest.raises(ModelError, match=r"expected one of \.safetensors"):
        read_state_dict(Path(__file__))
    with pytest.raises(ModelError, match="No weight file"):
        read_state_dict(tmp_path / "none.pt")


def test_finds_one_file_or_all_shards(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights: expected model\.safetensors"):
        find_weight_files(tmp_path)
    written(tmp_path / "other.safetensors")
    assert find_weight_files(tmp_path) == (tmp_path / "other.safetensors",)
    written(tmp_path / "model.safetensors")
    assert find_weight_files(tmp_path) == (tmp_path / "model.safetensors",)
    (tmp_path / "model.safetensors").rename(tmp_path / "more.safetensors")
    index = {"weight_map": {"a": "other.safetensors", "b": "more.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {path.name for path in find_weight_files(tmp_path)} == set(index["weight_map"].values())
    (tmp_path / "other.safetensors").unlink()
    with pytest.raises(ModelError, match=r"missing: other\.safetensors"):
        find_weight_files(tmp_path)


def test_hash_covers_every_byte(tmp_path: Path) -> None:
    path = written(tmp_path / "w.safetensors")
    before = hash_files([path])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert hash_files([path]) != before


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_refuses_quantized_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(2, 2).to(dtype)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"a\.weight is stored as .*already quantized"):
        refuse_quantized(read_header([tmp_path / "w.safetensors"]), "w")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_names_the_tensor_that_is_not_finite(value: float) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    refuse_non_finite(module, "m")
    with torch.no_grad():
        module[1].weight[0, 1] = value
    with pytest.raises(ModelError, match=r"1\.weight holds 1 NaN or infinite of 4"):
        refuse_non_finite(module, "m")
