"""What people do with a transformers model, done with a compressed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import compressor
from compressor.checkpoint.export.logits import only_logits
from compressor.errors import CheckpointError, ModelError
from compressor.forward import call
from compressor.layers.lowrank import LOW_RANK_TYPES, LowRankLinear, lowrank_layers
from tests.contract.architectures import ARCHITECTURES, CLASSES, build

TIED = "transformers-qwen3"
NAMES = ("transformers-bert", "transformers-vit", "transformers-gpt2", TIED)


class Saved:
    """A compressed architecture on disk, and what it makes of its inputs."""

    def __init__(self, name: str, directory: Path) -> None:
        entry = ARCHITECTURES[name]
        batches = [(entry.inputs(4), torch.arange(4) % CLASSES)]
        small = compressor.compress(entry.wrap(build(name)), batches, "layers=50%", method="svd")
        self.model = entry.unwrap(small.model)
        self.inputs = entry.inputs(3)
        self.directory = directory
        compressor.save(self.model, directory)

    def load(self, directory: Path | None = None, **options: object) -> nn.Module:
        import transformers

        (name,) = json.loads((self.directory / "config.json").read_text())["architectures"]
        return getattr(transformers, name).from_pretrained(directory or self.directory, **options)

    def logits(self, model: nn.Module) -> Tensor:
        inputs = self.inputs
        if isinstance(inputs, Tensor):
            inputs = inputs.to(next(model.parameters()).dtype)
        with torch.no_grad():
            return only_logits(call(model.eval(), inputs))

    @property
    def expected(self) -> Tensor:
        return self.logits(self.model)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    root = tmp_path_factory.mktemp("behaviour")
    return {name: Saved(name, root / name) for name in NAMES}


@pytest.fixture
def bert(every: dict[str, Saved]) -> Saved:
    return every["transformers-bert"]


@pytest.fixture(params=NAMES)
def saved(request: pytest.FixtureRequest, every: dict[str, Saved]) -> Saved:
    return every[request.param]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"device_map": "cpu"},
        {"device_map": "auto"},
        {"low_cpu_mem_usage": True},
        {"dtype": torch.float32},
        {"dtype": "auto"},
    ],
    ids=str,
)
def test_options_of_from_pretrained_change_nothing(saved: Saved, options: dict) -> None:
    model = saved.load(**options)
    assert lowrank_layers(model).keys() == lowrank_layers(saved.model).keys()
    assert torch.equal(saved.logits(model), saved.expected)


@pytest.mark.parametrize("shards", ["5GB", "30KB"])
def test_save_pretrained_again_and_load(saved: Saved, shards: str, tmp_path: Path) -> None:
    saved.load().save_pretrained(tmp_path / "again", max_shard_size=shards)
    files = list((tmp_path / "again").glob("*.safetensors"))
    assert (len(files) > 1) == (shards == "30KB")
    assert torch.equal(saved.logits(saved.load(tmp_path / "again")), saved.expected)
    assert torch.equal(saved.logits(compressor.load(tmp_path / "again")), saved.expected)
    first, second = (
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (saved.directory, tmp_path / "again")
    )
    assert first == second


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_by_option_and_by_cast(saved: Saved, dtype: torch.dtype) -> None:
    loaded = saved.load(dtype=dtype)
    cast = saved.load().half() if dtype == torch.float16 else saved.load().to(dtype)
    assert {p.dtype for p in loaded.parameters()} == {p.dtype for p in cast.parameters()} == {dtype}
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, cast.state_dict()[name]), name
    scale = saved.expected.abs().max()
    assert (saved.logits(loaded).float() - saved.expected).abs().max() < 0.1 * scale


def test_tied_weights_stay_tied(every: dict[str, Saved], tmp_path: Path) -> None:
    model = every[TIED].load()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with safe_open(every[TIED].directory / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    model.save_pretrained(tmp_path / "again")
    with safe_open(tmp_path / "again" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_weights_may_be_offloaded_to_disk(bert: Saved, tmp_path: Path) -> None:
    places = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu"}
    model = bert.load(
        device_map={**places, "classifier": "cpu"}, offload_folder=str(tmp_path / "offload")
    )
    assert next(model.bert.encoder.parameters()).is_meta
    assert torch.equal(bert.logits(model), bert.expected)


def test_dequantize_gives_an_ordinary_dense_model(saved: Saved, tmp_path: Path) -> None:
    model = saved.load()
    model.dequantize()
    assert not lowrank_layers(model)
    torch.testing.assert_close(saved.logits(model), saved.expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    again = saved.load(tmp_path / "dense")
    assert torch.equal(saved.logits(again), saved.logits(model))


def test_gradient_checkpointing_gives_the_same_gradients(bert: Saved) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = bert.load().train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model(**bert.inputs, labels=torch.arange(3)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert any(name.endswith("down.weight") for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_full_fine_tuning_trains_both_factors_and_saves(bert: Saved, tmp_path: Path) -> None:
    model = bert.load().train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(**bert.inputs, labels=torch.arange(3)).loss.backward()
    optimizer.step()
    for name in lowrank_layers(model):
        for factor in (f"{name}.weight", f"{name}.down.weight"):
            assert not torch.equal(dict(model.named_parameters())[factor], before[factor]), factor
    model.eval().save_pretrained(tmp_path / "tuned")
    assert torch.equal(bert.logits(bert.load(tmp_path / "tuned")), bert.logits(model))


def test_trainer_takes_it(bert: Saved, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": bert.inputs["input_ids"][i], "labels": torch.tensor(i)} for i in range(3)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model=bert.load(), args=arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(tmp_path / "tuned"))
    again = bert.load(tmp_path / "tuned")
    assert torch.equal(bert.logits(again), bert.logits(trainer.model))


# peft 0.21 asks a property that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("target", ["q_proj", "q_proj.down"])
def test_lora_reaches_whole_and_thin_layers(
    target: str, every: dict[str, Saved], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    saved = every[TIED]
    model = peft.get_peft_model(saved.load(), peft.LoraConfig(target_modules=[target], r=2))
    assert torch.equal(saved.logits(model), saved.expected)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        only_logits(model.train()(**saved.inputs)).square().sum().backward()
        optimizer.step()
    adapted = saved.logits(model)
    assert not torch.equal(adapted, saved.expected)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(saved.load(), tmp_path / "adapter")
    assert torch.equal(saved.logits(again), adapted)
    if target == "q_proj.down":
        merged = again.merge_and_unload()
        torch.testing.assert_close(saved.logits(merged), adapted, rtol=1e-4, atol=1e-5)
    else:  # an update of full shape does not fit into a thin factor, and peft says so
        with pytest.raises(RuntimeError, match="size of tensor"):
            again.merge_and_unload()


def test_names_in_memory_may_differ_from_keys_on_disk(every: dict[str, Saved]) -> None:
    saved = every["transformers-vit"]
    with safe_open(saved.directory / "model.safetensors", "pt") as file:
        on_disk = set(file.keys())
    in_memory = set(saved.load().state_dict())
    assert on_disk != in_memory
    assert any(key.endswith(".down.weight") for key in on_disk)


def test_compiles_without_a_graph_break(saved: Saved) -> None:
    torch.compiler.reset()
    compiled = torch.compile(saved.load().eval(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(saved.logits(compiled), saved.expected, rtol=1e-4, atol=1e-5)


def test_generates_text(every: dict[str, Saved]) -> None:
    model = every["transformers-gpt2"].load()
    ids = every["transformers-gpt2"].inputs["input_ids"]
    made = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    by_hand = ids
    for _ in range(made.shape[1] - ids.shape[1]):
        with torch.no_grad():
            following = model(by_hand).logits[:, -1].argmax(-1, keepdim=True)
        by_hand = torch.cat([by_hand, following], 1)
    assert made.shape[1] > ids.shape[1]
    assert torch.equal(made[0], by_hand[0]) or 0 in made[0]


def test_pipeline_takes_the_directory(trained_bert, tmp_path: Path) -> None:
    from transformers import pipeline

    from compressor.cli import main

    out = tmp_path / "small"
    words = ["compress", *trained_bert.words, "--budget", "layers=50%", "--out", str(out)]
    assert main([*words, "--method", "svd", "--quiet"]) == 0
    found = pipeline("text-classification", str(out))("alpha beta", top_k=None)
    assert sum(entry["score"] for entry in found) == pytest.approx(1, abs=1e-4)
    assert isinstance(
        next(
            m
            for m in pipeline("text-classification", str(out)).model.modules()
            if isinstance(m, LOW_RANK_TYPES)
        ),
        LowRankLinear,
    )


def test_a_newer_format_is_refused_with_advice(bert: Saved, tmp_path: Path) -> None:
    import shutil

    newer = tmp_path / "newer"
    shutil.copytree(bert.directory, newer)
    config = json.loads((newer / "config.json").read_text())
    config["quantization_config"]["format_version"] += 1
    (newer / "config.json").write_text(json.dumps(config))
    for load in (bert.load, compressor.load):
        with pytest.raises((CheckpointError, ModelError), match="pip install --upgrade compressor"):
            load(newer)
