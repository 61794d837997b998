from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from compressor.errors import ModelError
from compressor.models import load_model
from compressor.models.hub import is_hub_id, snapshot
from compressor.settings import ModelSettings
from tests.contract.small_models import build

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize("reference", ["timm/vit.in1k", "a/b@main", "a-b/c_d.e@v1.0"])
def test_hub_ids(reference: str) -> None:
    assert is_hub_id(reference)


@pytest.mark.parametrize("reference", ["resnet50", "./a/b", "/a/b", "a/b/c", "models/net.py", "a/"])
def test_other_references(reference: str) -> None:
    assert not is_hub_id(reference)


def test_a_cached_model_loads_without_network(cache: Path) -> None:
    repository = cache / "models--owner--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    build("bert").save_pretrained(repository / "snapshots" / REVISION)
    assert snapshot("owner/small", weights=True) == repository / "snapshots" / REVISION
    for reference in ("owner/small", f"owner/small@{REVISION}"):
        model = load_model(ModelSettings(model=reference, device="cpu"))
        assert model.framework == "transformers"
        assert model.num_classes == 3


@pytest.mark.usefixtures("cache")
def test_neither_cached_nor_reachable() -> None:
    with pytest.raises(ModelError, match=r"No model 'nobody/nothing'.*hf download nobody/nothing"):
        load_model(ModelSettings(model="nobody/nothing", device="cpu"))


@pytest.mark.usefixtures("cache")
def test_timm_weights_that_cannot_be_fetched() -> None:
    with pytest.raises(ModelError, match="--checkpoint FILE"):
        load_model(ModelSettings(model="test_vit", device="cpu"))
