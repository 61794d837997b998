"""What push_to_hub would upload is a whole checkpoint; no network is needed to see that."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

import compressor
from compressor.forward import call, logits_of
from compressor.layers.lowrank import lowrank_layers
from tests.contract.architectures import ARCHITECTURES, build


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that takes what would be committed to a repository."""
    remote = tmp_path / "remote"

    def create_commit(api: object, repo_id: str, operations: list, **others: object) -> object:
        del api, others
        for operation in operations:
            target = remote / repo_id / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(operation.path_or_fileobj, target)
        return SimpleNamespace(commit_url="")

    def create_repo(api: object, repo_id: str, **others: object) -> object:
        del api, others
        return SimpleNamespace(repo_id=repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    return remote


@pytest.mark.parametrize("name", ["transformers-bert", "transformers-mixtral"])
def test_what_is_uploaded_loads_with_equal_logits(name: str, hub: Path, tmp_path: Path) -> None:
    import transformers

    entry = ARCHITECTURES[name]
    batches = [(entry.inputs(4), torch.arange(4) % 3)]
    small = compressor.compress(entry.wrap(build(name)), batches, "layers=50%", method="svd").model
    compressor.save(entry.unwrap(small), tmp_path / "small")
    kind = getattr(transformers, type(entry.unwrap(small)).__name__)
    kind.from_pretrained(tmp_path / "small").push_to_hub("someone/small")

    uploaded = hub / "someone" / "small"
    assert {"config.json", "model.safetensors"} <= {path.name for path in uploaded.iterdir()}
    again = entry.wrap(kind.from_pretrained(uploaded).eval())
    assert lowrank_layers(again).keys() == lowrank_layers(small).keys()
    with torch.no_grad():
        assert torch.equal(
            logits_of(call(again, entry.inputs(3))), logits_of(call(small, entry.inputs(3)))
        )
