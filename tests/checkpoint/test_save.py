"""A directory is written whole or not at all."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from compressor.checkpoint.format import LowRankConfig, read_config
from compressor.checkpoint.save import refuse_existing, save_directory
from compressor.errors import CheckpointError, LayerError, OutputExistsError
from compressor.models import LoadedModel, describe
from tests.contract.small_models import MODELS, build, factorize


class Made(NamedTuple):
    model: LoadedModel
    lowrank: LowRankConfig


@pytest.fixture
def made() -> Made:
    module = build("cnn")
    model = describe(module)
    return Made(model, factorize(module, MODELS["cnn"][1]))


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_writes_weights_config_and_extra_files(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    size = save_directory(
        made.model, out, lowrank=made.lowrank, extra_files={"README.md": "ä", "plan.json": "{}"}
    )
    assert listing(tmp_path / "deep") == [
        "out",
        "out/README.md",
        "out/config.json",
        "out/integrity.json",
        "out/model.safetensors",
        "out/plan.json",
    ]
    assert size == (out / "model.safetensors").stat().st_size
    assert (out / "README.md").read_text(encoding="utf-8") == "ä"
    block = read_config(out)["lowrank"]
    assert isinstance(block, Mapping)
    assert block["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert out.stat().st_mode & 0o777 == 0o777 & ~_umask()
    for file in out.iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~_umask(), file.name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_same_model_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_directory(made.model, tmp_path / name, lowrank=made.lowrank)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_existing_output_needs_overwrite(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_directory(made.model, out, lowrank=made.lowrank, extra_files={"old": ""})
    with pytest.raises(OutputExistsError, match="--overwrite"):
        save_directory(made.model, out, lowrank=made.lowrank)
    assert (out / "old").exists()
    save_directory(made.model, out, lowrank=made.lowrank, overwrite=True)
    assert listing(tmp_path) == [
        "out",
        "out/config.json",
        "out/integrity.json",
        "out/model.safetensors",
    ]


def test_overwrite_never_replaces_what_is_not_ours(made: Made, tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    save_directory(made.model, precious, lowrank=made.lowrank)  # an empty directory may be used
    shutil.rmtree(precious)
    precious.mkdir()
    (precious / "chapter.tex").write_text("x")
    with pytest.raises(OutputExistsError, match="not written by compressor"):
        save_directory(made.model, precious, lowrank=made.lowrank, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError, match="no directory"):
        refuse_existing(tmp_path / "file", overwrite=True)
    (tmp_path / "link").symlink_to(precious)
    with pytest.raises(OutputExistsError, match="no directory"):
        refuse_existing(tmp_path / "link", overwrite=True)
    assert listing(precious) == ["chapter.tex"]


def test_no_space_is_seen_beforehand(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 100))
    with pytest.raises(CheckpointError, match=r"No space in .* 100 are free"):
        save_directory(made.model, tmp_path / "out", lowrank=made.lowrank)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["cnn", "bert"])
def test_a_disk_that_fails_half_way_leaves_nothing(name: str, tmp_path: Path) -> None:
    module = build(name)
    model = describe(module)
    lowrank = factorize(module, MODELS[name][1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # files stop growing at 2,000 bytes
    try:
        with pytest.raises(CheckpointError, match=r"Cannot write .*out"):
            save_directory(model, tmp_path / "out", lowrank=lowrank)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert listing(tmp_path) == []


def test_no_permission_is_explained(made: Made, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        target = Path("/proc/compressor-cannot-write-here/out")  # root may write anywhere else
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        target = tmp_path / "locked" / "out"
    with pytest.raises(CheckpointError, match=r"Cannot write .*permissions"):
        save_directory(made.model, target, lowrank=made.lowrank)


def test_a_weight_that_overflows_leaves_the_old_directory(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_directory(made.model, out, lowrank=made.lowrank)
    before = (out / "model.safetensors").read_bytes()
    with torch.no_grad():
        made.model.module.head.weight[0, 0] = 1e9
    half = LoadedModel(
        **{
            **vars(made.model),
            "storage_dtypes": dict.fromkeys(made.model.storage_dtypes, torch.float16),
        }
    )
    with pytest.raises(LayerError, match="Layer head"):
        save_directory(half, out, lowrank=made.lowrank, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert listing(tmp_path) == [
        "out",
        "out/config.json",
        "out/integrity.json",
        "out/model.safetensors",
    ]


def test_carried_files_are_copied(tmp_path: Path) -> None:
    from compressor.models import load_model
    from compressor.settings import ModelSettings

    build("bert").save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "training_args.txt").write_text("private")
    module_settings = ModelSettings(model=str(tmp_path / "dense"), device="cpu")
    (tmp_path / "dense" / "preprocessor_config.json").write_text("{}")
    model = load_model(module_settings)
    lowrank = factorize(model.module, MODELS["bert"][1])
    save_directory(model, tmp_path / "out", lowrank=lowrank)
    assert "out/preprocessor_config.json" in listing(tmp_path)
    assert "out/training_args.txt" not in listing(tmp_path)
