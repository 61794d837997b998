"""Checkpoints from strangers run no code, read nothing elsewhere, and fill no memory."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compressor.checkpoint.load import load
from compressor.checkpoint.save import save_directory
from compressor.errors import CompressorError, ModelError
from compressor.models import describe, load_model
from compressor.models.bounded import refuse_absurd
from compressor.models.weights import find_weight_files, read_header, read_state_dict
from compressor.settings import ModelSettings
from tests.contract.small_models import MODELS, build, factorize


class Runs:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return (os.system, (self.command,))


@pytest.fixture
def mark(tmp_path: Path):
    """Return a path that a hostile file tries to make, and see that it was not made."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


@pytest.fixture
def little_memory():
    """Let this process grow by 2 GiB at most while the test runs."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def loading(directory: Path) -> ModelSettings:
    return ModelSettings(model=str(directory), device="cpu")


# Weight files.


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_a_pickle_that_wants_code_is_refused_with_advice(suffix, tmp_path, mark):
    path = tmp_path / f"weights{suffix}"
    for content in (Runs(f"touch {mark}"), {"weight": Runs(f"touch {mark}")}):
        path.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ModelError, match="run code from the file"):
            read_state_dict(path)
        torch.save(content, path)
        with pytest.raises(ModelError, match=r"safetensors\.torch\.save_file"):
            read_state_dict(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"PK\x03\x04aaaa", b"\x80\x02garbage", bytes(range(256))]
)
def test_noise_for_weights_is_called_damaged(content, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged or truncated"):
        read_state_dict(path)


def test_an_archive_is_not_unpacked(tmp_path):
    torch.save({"weight": torch.zeros(1000, 100)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.namelist():
            bomb.writestr(entry, plain.read(entry))
    assert read_state_dict(tmp_path / "plain.pt")["weight"].shape == (1000, 100)
    with pytest.raises(ModelError, match="archives are not unpacked"):
        read_state_dict(tmp_path / "bomb.pt")


def test_tensors_that_claim_more_than_the_file_holds(tmp_path, little_memory):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(ModelError, match="weight claims 1,000,000,000,000 values"):
        read_state_dict(path)
    torch.save({"weight": torch.zeros(3).to_sparse()}, path)
    with pytest.warns(UserWarning, match="sparse"), pytest.raises(ModelError, match="sparse"):
        read_state_dict(path)


def test_tensors_without_values_are_never_taken_for_weights(tmp_path):
    from compressor.models.loading import load_exactly

    with pytest.raises(ModelError, match="weight has a shape but no values"):
        load_exactly(
            torch.nn.Linear(2, 2, bias=False),
            {"weight": torch.zeros(2, 2, device="meta")},
            where="weights.pt",
        )


def safetensors_file(path: Path, header: object, data: bytes = b"", length: int | None = None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"w": ENTRY}, 1 << 60),
        ({"w": ENTRY}, 101 << 20),
        ({"w": {**ENTRY, "shape": [10**12]}}, None),
        ({"w": {**ENTRY, "shape": [1 << 62, 4]}}, None),
        ({"w": {**ENTRY, "data_offsets": [0, 1 << 40]}}, None),
        ({"w": {**ENTRY, "data_offsets": [8, 0]}}, None),
        ({"w": {**ENTRY, "shape": [-2]}}, None),
        ({"w": ENTRY, "v": ENTRY}, None),
        ({"w": {**ENTRY, "dtype": "F99"}}, None),
        (b"[" * 50_000, None),
        (b"\xff" * 20, None),
    ],
)
def test_a_safetensors_header_cannot_ask_for_memory(header, length, tmp_path, little_memory):
    path = tmp_path / "model.safetensors"
    safetensors_file(path, header, bytes(8), length)
    for read in (lambda: read_header([path]), lambda: read_state_dict(path)):
        with pytest.raises(ModelError, match="damaged or truncated"):
            read()


# Shard indexes.


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "c:\\x.safetensors",
     "x\0.safetensors", 3, None, ["a"], {"a": 1}, "x" * 300 + ".bin", "script.py"],
)  # fmt: skip
def test_an_index_names_files_beside_it_only(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.zeros(2)}, tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError, match="w is said to lie in"):
        find_weight_files(folder)


def test_what_is_looked_at_is_what_from_pretrained_loads(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "other.safetensors"}}))
    assert [path.name for path in find_weight_files(tmp_path)] == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    assert [path.name for path in find_weight_files(tmp_path)] == ["other.safetensors"]


# config.json.


@pytest.fixture
def timm_directory(tmp_path: Path) -> Path:
    module = build("timm-vit")
    described = describe(module)
    lowrank = factorize(module, MODELS["timm-vit"][1])
    save_directory(described, tmp_path / "out", lowrank=lowrank)
    return tmp_path / "out"


def change(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_model_args_cannot_load_a_pickle(timm_directory, tmp_path, mark):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Runs(f"touch {mark}")))
    change(timm_directory, model_args={"checkpoint_path": str(tmp_path / "evil.pth")})
    with pytest.raises(ModelError, match="model_args holds checkpoint_path"):
        load(timm_directory)


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/model", "local-dir:/tmp", "someone/model", "vit_bese", 3, None]
)
def test_an_architecture_is_one_of_timms(name, timm_directory):
    change(timm_directory, architecture=name)
    with pytest.raises(ModelError, match="no architecture that timm knows"):
        load(timm_directory)


@pytest.mark.parametrize(
    "arguments",
    [{"img_size": 10**6}, {"embed_dim": 10**6}, {"depth": 10**9}, {"depth": 9_000},
     {"num_heads": 10**12}, {"nonsense": 1}, {"mlp_ratio": "x"}],
)  # fmt: skip
def test_model_args_build_no_more_than_the_weights_fill(arguments, timm_directory, little_memory):
    change(timm_directory, model_args={"img_size": 32, **arguments})
    with pytest.raises(ModelError, match=r"more than|at most|cannot build"):
        load(timm_directory)


@pytest.mark.parametrize(
    "values",
    [{"num_hidden_layers": 10**9}, {"num_hidden_layers": 9_999}, {"hidden_size": 10**6},
     {"vocab_size": 10**10}, {"max_position_embeddings": 10**9}, {"num_labels": 10**12},
     {"intermediate_size": 10**9}, {"num_attention_heads": 0}, {"hidden_size": "x"},
     {"hidden_act": "rm -rf"}, {"model_type": "none"}, {"architectures": [{}]},
     {"dtype": "float3"}, {"id2label": 3}],
)  # fmt: skip
@pytest.mark.parametrize("compressed", [False, True])
def test_a_transformers_config_builds_no_more_either(values, compressed, tmp_path, little_memory):
    module = build("bert")
    if compressed:
        described = describe(module)
        lowrank = factorize(module, MODELS["bert"][1])
        save_directory(described, tmp_path / "out", lowrank=lowrank)
    else:
        module.save_pretrained(tmp_path / "out")
    change(tmp_path / "out", **values)
    with pytest.raises(CompressorError) as caught:
        load_model(loading(tmp_path / "out"))
    assert "out" in str(caught.value)


@pytest.mark.parametrize(
    ("rank", "kind"), [(10**9, "linear"), (0, "linear"), (-1, "linear"), (3, "nonsense")]
)
def test_ranks_lie_within_the_shapes(rank, kind, timm_directory, little_memory):
    config = json.loads((timm_directory / "config.json").read_text())
    config["lowrank"]["layers"]["blocks.0.attn.qkv"] |= {"rank": rank, "kind": kind}
    change(timm_directory, lowrank=config["lowrank"])
    with pytest.raises(CompressorError, match=r"blocks.0.attn.qkv|nonsense"):
        load(timm_directory)


def test_numbers_of_thousands_of_digits_are_shown_short():
    with pytest.raises(ModelError, match=r"key depth is above 2\^3321"):
        refuse_absurd({"a": [{"depth": 10**1000}]}, "config.json")
    nested: object = 1
    for _ in range(100):
        nested = [nested]
    with pytest.raises(ModelError, match="nested"):
        refuse_absurd({"a": nested}, "config.json")
