from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.forward import call, logits_of
from compressor.models import load_model
from compressor.settings import ModelSettings
from tests.contract.small_models import build

MINILM = Path(__file__).parents[3] / "shared" / "models" / "minilm-reuters52"


def settings(path: Path, **options: object) -> ModelSettings:
    return ModelSettings(model=str(path), device="cpu", **options)


def saved(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    module = build(name).to(dtype)
    module.save_pretrained(directory)
    return module


def test_half_precision_file_is_computed_in_float32(tmp_path: Path) -> None:
    module = saved("bert", tmp_path, torch.float16)
    model = load_model(settings(tmp_path))
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert set(model.storage_dtypes.values()) == {torch.float16}
    assert model.storage_dtypes.keys() == module.state_dict().keys()
    assert not model.module.training
    assert model.bytes_on_disk == (tmp_path / "model.safetensors").stat().st_size
    assert model.sha256 is not None
    weight = module.classifier.weight
    assert torch.equal(model.module.classifier.weight, weight.float())


def test_types_follow_names_that_differ_on_disk(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    key = "vit.encoder.layer.0.attention.attention.query.weight"
    state[key] = state[key].half()
    state["classifier.weight"] = state["classifier.weight"].bfloat16()
    save_file(state, path, {"format": "pt"})
    dtypes = load_model(settings(tmp_path)).storage_dtypes
    assert dtypes["vit.layers.0.attention.q_proj.weight"] == torch.float16
    assert dtypes["classifier.weight"] == torch.bfloat16
    assert dtypes["vit.layers.0.attention.k_proj.weight"] == torch.float32


def test_skeleton_reads_no_weights(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    full = load_model(settings(tmp_path))
    skeleton = load_model(settings(tmp_path), skeleton=True)
    assert all(p.is_meta for p in skeleton.module.parameters())
    shapes = {key: t.shape for key, t in full.module.state_dict().items()}
    assert {key: t.shape for key, t in skeleton.module.state_dict().items()} == shapes
    assert skeleton.bytes_on_disk == full.bytes_on_disk
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:8])
    load_model(settings(tmp_path), skeleton=True)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_skeleton_runs_on_its_example_inputs(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    skeleton = load_model(settings(tmp_path), skeleton=True)
    assert logits_of(call(skeleton.module, skeleton.example_inputs(2))).shape == (2, 3)


def test_only_real_label_names_become_class_names(tmp_path: Path) -> None:
    saved("bert", tmp_path)
    assert load_model(settings(tmp_path)).class_names is None
    path = tmp_path / "config.json"
    labels = {"0": "bad", "1": "so-so", "2": "good"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": labels}))
    assert load_model(settings(tmp_path)).class_names == ("bad", "so-so", "good")


def test_heads_are_what_lies_outside_the_backbone(tmp_path: Path) -> None:
    for name, head in (("bert", "classifier"), ("gpt2", "score"), ("vit", "classifier")):
        saved(name, tmp_path / name)
        assert load_model(settings(tmp_path / name)).heads == (head,)


@pytest.mark.parametrize(
    ("processor", "size", "crop_pct", "mode"),
    [
        ({"size": {"height": 32, "width": 32}}, (3, 32, 32), 1.0, "squash"),
        (
            {
                "size": {"shortest_edge": 40},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
            },
            (3, 32, 32),
            0.8,
            "center",
        ),
    ],
)
def test_preprocessing_is_read(
    processor: dict[str, object],
    size: tuple[int, ...],
    crop_pct: float,
    mode: str,
    tmp_path: Path,
) -> None:
    saved("vit", tmp_path)
    assert load_model(settings(tmp_path)).transform is None
    written = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 3,
        **processor,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    model = load_model(settings(tmp_path))
    transform = model.transform
    assert transform is not None
    assert transform.input_size == size
    assert transform.mean == (0.1, 0.2, 0.3)
    assert transform.std == (0.4, 0.5, 0.6)
    assert transform.interpolation == "bicubic"
    assert transform.crop_pct == crop_pct
    assert transform.crop_mode == mode
    assert [path.name for path in model.carried] == ["preprocessor_config.json"]
    other = load_model(settings(tmp_path, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))).transform
    assert other is not None
    assert other.mean == (0.5, 0.5, 0.5)


def test_example_inputs_are_repeatable_and_bounded(tmp_path: Path) -> None:
    saved("bert", tmp_path)
    model = load_model(settings(tmp_path))
    first, second = model.example_inputs(2, length=500), model.example_inputs(2, length=500)
    assert first["input_ids"].shape == (2, 38)
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert int(first["input_ids"].max()) < 100
    assert not (first["input_ids"] == 0).any()


@pytest.mark.skipif(not MINILM.is_dir(), reason="the shared MiniLM checkpoint is not here")
def test_minilm_loads_with_tokenizer_and_labels() -> None:
    model = load_model(settings(MINILM))
    assert model.num_classes == 52
    assert model.class_names is not None
    assert model.class_names[0] == "acq"
    assert {path.name for path in model.carried} == {"tokenizer.json", "tokenizer_config.json"}
    assert set(model.storage_dtypes.values()) == {torch.float16}
    assert model.tokenizer("crude oil")["input_ids"]  # type: ignore[operator]
