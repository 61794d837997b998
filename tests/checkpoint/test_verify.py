"""`verify` passes what was saved, and names what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compressor.checkpoint.integrity import NAME, read_integrity, record_of
from compressor.checkpoint.probe import Probe, ProbeInput, hash_of_inputs, replay, take_probe
from compressor.checkpoint.save import save_directory
from compressor.checkpoint.verify import verify_directory
from compressor.cli import main
from compressor.errors import CheckpointError, ModelError
from compressor.methods.plan import Plan, PlannedLayer
from compressor.methods.recipe import Recipe
from compressor.models import describe
from compressor.saving import save
from compressor.schema import VerificationReport
from compressor.settings import ModelSettings
from tests.contract.small_models import MODELS, build, factorize

FACTORY = f"{Path(__file__).parents[1] / 'contract' / 'small_models.py'}:Cnn"
EXAMPLE = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def saved(name: str, directory: Path) -> Path:
    module = build(name)
    described = describe(module)
    lowrank = factorize(module, MODELS[name][1])
    save_directory(
        described, directory, lowrank=lowrank, example=EXAMPLE if name.startswith("cnn") else None
    )
    return directory


def verified(directory: Path, **options: object) -> VerificationReport:
    factory = FACTORY if directory.name.startswith("cnn") else None
    settings = ModelSettings(model=str(directory), factory=factory, device="cpu")
    return verify_directory(settings, **options)  # type: ignore[arg-type]


def outcomes(report: VerificationReport) -> dict[str, str]:
    return {check.name: check.outcome for check in report.checks}


def failures(report: VerificationReport) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if check.outcome == "failed"}


@pytest.mark.parametrize("name", MODELS)
def test_what_was_saved_passes(name: str, tmp_path: Path) -> None:
    report = verified(saved(name, tmp_path / name))
    expected = dict.fromkeys(("integrity", "files", "versions", "ranks", "outputs"), "passed")
    assert outcomes(report) == {**expected, "plan": "skipped"}, report
    assert report.ok
    assert report.layers == len(report_layers(tmp_path / name))


def report_layers(directory: Path) -> dict[str, object]:
    config = json.loads((directory / "config.json").read_text())
    return (config.get("lowrank") or config["quantization_config"])["layers"]


def flip(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)


def wrong_rank(directory: Path) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    next(iter(config["lowrank"]["layers"].values()))["rank"] += 1
    path.write_text(json.dumps(config))


def scaled(directory: Path) -> None:
    """Change the weights a little, and let integrity.json agree: only the outputs can tell."""
    path = directory / "model.safetensors"
    state = {key: tensor * 1.05 for key, tensor in load_file(path).items()}
    save_file(state, path, {"format": "pt"})
    agreed(directory, path)


def agreed(directory: Path, path: Path) -> None:
    record = json.loads((directory / NAME).read_text())
    record["files"][path.name] = record_of(path).model_dump()
    (directory / NAME).write_text(json.dumps(record))


def edited(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        record = json.loads((directory / NAME).read_text())
        change(record)
        (directory / NAME).write_text(json.dumps(record))

    return edit


@pytest.mark.parametrize(
    ("damage", "check", "saying"),
    [
        (flip, "files", "changed: model.safetensors"),
        (lambda d: (d / "pytorch_model.bin").write_bytes(b"x"), "files", "added since: pytorch"),
        (lambda d: (d / "config.json").write_text((d / "config.json").read_text() + " "), "files",
         "changed: config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "files", "missing: model.safetensors"),
        (wrong_rank, "ranks", "at rank"),
        (scaled, "outputs", "the logits differ by"),
        (edited(lambda r: r["probe"].update(seed=1)), "outputs", "not those"),
        (edited(lambda r: r["probe"]["inputs"][0].update(shape=[9999, 9999])), "outputs",
         "more than"),
        (edited(lambda r: r["probe"]["inputs"][0].update(high=-9)), "outputs", "no range"),
        (edited(lambda r: r["probe"].update(shape=[2, 8])), "outputs", "output has shape"),
        (edited(lambda r: r["files"].update({"../config.json": r["files"]["config.json"]})),
         "integrity", "../config.json"),
        (lambda d: (d / NAME).write_text("[" * 100_000), "integrity", "JSON"),
        (lambda d: (d / "plan.json").write_text("{}"), "plan", "plan.json"),
    ],
)  # fmt: skip
def test_damage_is_named(
    damage: Callable[[Path], None], check: str, saying: str, tmp_path: Path
) -> None:
    directory = saved("cnn", tmp_path / "cnn")
    damage(directory)
    report = verified(directory)
    assert not report.ok
    assert saying in failures(report)[check], report


@pytest.mark.parametrize(
    ("ranks", "saying"),
    [
        ({"embed": 3, "head": 3, "mixer": 2}, None),
        ({"embed": 3, "head": 4, "mixer": 2}, "head has factors [3, 9] at rank 4"),
        ({"embed": 2, "head": 3, "mixer": 2}, "embed has factors [20, 3] and [9, 3] at rank 2"),
        ({"embed": 3, "head": 3}, "1 layers have factors that config.json does not name"),
        ({"embed": 3, "head": 3, "mixer": 2, "gone": 5}, "gone has no factors of rank 5"),
        ({"embed": 3, "head": 3, "renamed": 2}, None),
    ],
)
def test_ranks_of_embeddings_and_of_layers_that_share(ranks, saying, tmp_path: Path) -> None:
    """An embedding's table [V, r] stands in the file once, also for the layer that shares it."""
    state = {
        "embed.weight": torch.zeros(20, 3),
        "embed.up.weight": torch.zeros(9, 3),
        "head.down.weight": torch.zeros(3, 9),
        "mixer.weight": torch.zeros(6, 2),
        "mixer.down.weight": torch.zeros(2, 9),
        "mlp.down.weight": torch.zeros(7, 9),  # a dense layer that happens to be called so
    }
    save_file(state, tmp_path / "model.safetensors")
    layers = {n: {"kind": "linear", "rank": rank, "bias": False} for n, rank in ranks.items()}
    config = {"framework": "torch", "lowrank": {"quant_method": "lowrank", "layers": layers}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = failures(verified(tmp_path)).get("ranks")
    assert found is None if saying is None else saying in str(found)


@pytest.mark.parametrize(
    ("changed", "saying"),
    [
        ({}, None),
        ({"embed": 2}, "embed: 2 in plan.json, 3 in config.json"),
        ({"mixer": 9}, "mixer: dense in plan.json, 2 in config.json"),
        ({"spare": 1}, "spare: 1 in plan.json, dense in config.json"),
    ],
)
def test_the_plan_agrees_and_leaves_out_what_is_tied(changed, saying, tmp_path: Path) -> None:
    def layer(name: str, rank: int) -> PlannedLayer:
        kind = "embedding" if name == "embed" else "linear"
        return PlannedLayer(kind=kind, shape=(20, 9), rank=rank, break_even_rank=6)

    ranks = {"embed": 3, "mixer": 2, **changed}
    plan = Plan(method="svd", recipe=Recipe(), layers={n: layer(n, r) for n, r in ranks.items()})
    plan.write(tmp_path / "plan.json")
    carried_out = {"embed": 3, "mixer": 2, "head": 3}  # the head shares the embedding's table
    layers = {n: {"kind": "linear", "rank": r, "bias": False} for n, r in carried_out.items()}
    config = {"framework": "torch", "lowrank": {"quant_method": "lowrank", "layers": layers}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    found = failures(verified(tmp_path)).get("plan")
    assert found is None if saying is None else str(found).startswith(saying)


def test_documents_may_be_edited(tmp_path: Path) -> None:
    module = build("timm-vit")
    described = describe(module)
    lowrank = factorize(module, MODELS["timm-vit"][1])
    save_directory(described, tmp_path / "out", lowrank=lowrank, extra_files={"README.md": "a"})
    (tmp_path / "out" / "README.md").write_text("better")
    (tmp_path / "out" / ".gitattributes").write_text("*.safetensors filter=lfs")
    report = verified(tmp_path / "out")
    assert report.ok
    assert "edited since: README.md" in report.checks[1].detail


def test_a_hash_from_elsewhere_is_compared(tmp_path: Path) -> None:
    directory = saved("cnn", tmp_path / "cnn")
    own = verified(directory).integrity_sha256
    assert verified(directory, sha256=own).ok
    scaled(directory)
    assert "expected" in failures(verified(directory, sha256=own))["integrity"]


def test_a_directory_without_a_record_is_checked_as_far_as_can_be(tmp_path: Path) -> None:
    directory = saved("bert", tmp_path / "bert")
    (directory / NAME).unlink()
    report = verified(directory)
    assert report.ok
    assert outcomes(report) == {
        "integrity": "skipped", "files": "skipped", "versions": "passed",
        "ranks": "passed", "plan": "skipped", "outputs": "skipped",
    }  # fmt: skip
    assert failures(verified(directory, sha256="0" * 64))["integrity"]
    (directory / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not saved by compressor"):
        verified(directory)


def test_a_plain_module_is_built_only_where_a_factory_is_named(tmp_path: Path) -> None:
    saved("cnn", tmp_path / "plain")
    report = verified(tmp_path / "plain")
    assert report.ok
    assert outcomes(report)["outputs"] == "skipped"


def test_the_command_tells_by_its_exit_code(tmp_path: Path, capsys) -> None:
    directory = saved("cnn", tmp_path / "cnn")
    words = ["verify", str(directory), "--factory", FACTORY, "--device", "cpu", "--quiet"]
    assert main(words) == 0
    assert "is what was saved" not in capsys.readouterr().out  # there is no plan.json to check
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    flip(directory)
    assert main(words) == 1
    assert "is not what was saved. Failed: files" in " ".join(capsys.readouterr().out.split())


def test_inputs_are_the_same_on_every_machine() -> None:
    """The hash was computed once; another one would mean that old probes cannot be replayed."""
    inputs = (
        ProbeInput(name=None, shape=(2, 3, 4), dtype="float32", low=-3, high=5),
        ProbeInput(name=None, shape=(2, 7), dtype="int64", low=1, high=9, avoid=4),
        ProbeInput(name=None, shape=(2, 7), dtype="bool", low=0, high=1),
    )
    made = [given.tensor(7, place) for place, given in enumerate(inputs)]
    assert hash_of_inputs(made) == EXPECTED
    assert -3 <= float(made[0].min()) < float(made[0].max()) < 5
    assert 4 not in made[1]
    assert {1, 9} <= set(made[1].flatten().tolist())


EXPECTED = "c9a60cd10ef3187513db57039a89d20077bb21bb77a4ed27e9d357e154f3c8a2"


def test_a_probe_holds_nothing_of_the_example() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    secret = torch.rand(4, 12) * 7
    probe = take_probe(describe(model), secret)
    assert isinstance(probe, Probe)
    batch = probe.batch()
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (2, 12)
    assert not torch.isin(batch, secret).any()
    assert probe.inputs[0].low == 0
    assert probe.inputs[0].high == 7


def test_taking_a_probe_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[3].eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    probe = take_probe(describe(model), torch.randn(3, 4))
    assert isinstance(probe, Probe)
    assert modes == [part.training for part in model.modules()]
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert replay(model, probe).difference == 0


class Restless(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) + torch.rand(1)


@pytest.mark.parametrize(
    ("model", "example", "why"),
    [
        (nn.Linear(4, 2), None, "size of its input"),
        (Restless(4, 2), torch.ones(2, 4), "change from one call"),
        (nn.Linear(4, 2), torch.ones(2, 5), "fails on made-up inputs"),
        (nn.Linear(4, 2), torch.full((2, 4), float("nan")), "cannot be described"),
        (nn.Linear(4, 2, device="meta"), torch.ones(2, 4), "not in memory"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).half()), torch.ones(2, 4), "several types"),
    ],
)
def test_why_there_is_no_probe_is_told(model, example, why: str, tmp_path: Path) -> None:
    reason = take_probe(describe(model), example)
    assert isinstance(reason, str)
    assert why in reason


def test_half_precision_is_replayed_in_half_precision(tmp_path: Path) -> None:
    model = build("bert").to(torch.bfloat16)
    factorize(model, MODELS["bert"][1])
    save(model, tmp_path / "bert")
    record = read_integrity(tmp_path / "bert")
    assert record is not None
    assert record.probe is not None
    assert record.probe.dtype == "bfloat16"
    assert verified(tmp_path / "bert").ok


def test_replaying_refuses_another_output() -> None:
    probe = take_probe(describe(nn.Linear(4, 2)), torch.ones(2, 4))
    assert isinstance(probe, Probe)
    with pytest.raises(ModelError, match="output has shape"):
        replay(nn.Linear(4, 3), probe)
