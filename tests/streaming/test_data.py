"""What is measured block by block from disk is what is measured in memory, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import compressor
from compressor.collapse.block_capture import _Run
from compressor.errors import ModelError, UsageError
from compressor.layers.lowrank import lowrank_layers
from compressor.methods import guided
from compressor.models.weights import find_weight_files
from compressor.pipeline import compress_model
from compressor.progress import SILENT
from compressor.settings import (
    CompressSettings,
    DataSettings,
    MethodSettings,
    ModelSettings,
    StreamSettings,
)
from compressor.streaming import run, writing
from compressor.streaming.run import stream_model
from tests import language

BUDGET = ("layers=60%",)


@pytest.fixture(autouse=True)
def nothing_is_timed(monkeypatch) -> None:
    monkeypatch.setattr("compressor.pipeline.compress.speed_figures", lambda *given: None)


def asked(model: Path, method: str, **others):
    """Return what streaming and compressing in memory are asked alike."""
    corpus = model.parent / "corpus.txt"
    corpus.write_text(language.text())
    return {
        "model": ModelSettings(model=str(model)),
        "data": DataSettings(data=str(corpus), limit=3, calibration=4, max_length=32),
        "method": MethodSettings(method=method, budget=BUDGET),
        **others,
    }


def streamed(out: Path, given) -> dict:
    return stream_model(StreamSettings(out=out, **given), progress=SILENT).model_dump()


def in_memory(out: Path, given) -> dict:
    return compress_model(CompressSettings(out=out, **given), progress=SILENT).model_dump()


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return compressor.load(directory).state_dict()


def bytes_of(directory: Path) -> dict[str, bytes]:
    files = [*find_weight_files(directory), directory / "plan.json"]
    return {path.name: path.read_bytes() for path in files}


def assert_same_weights(first: Path, second: Path) -> None:
    expected = tensors(second)
    found = tensors(first)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize(
    ("family", "dtype", "method"),
    [
        ("llama", torch.bfloat16, "gfwsvd"),
        pytest.param("gpt2", torch.float32, "drone", marks=pytest.mark.slow),
        pytest.param("mixtral", torch.float32, "gfwsvd", marks=pytest.mark.slow),
        pytest.param("gemma2", torch.float32, "fwsvd", marks=pytest.mark.slow),
        pytest.param("bert", torch.float32, "svd-llm", marks=pytest.mark.slow),
    ],
)
def test_ranks_weights_and_figures_are_those_of_a_run_in_memory(
    family, dtype, method, tmp_path
) -> None:
    given = asked(language.save(family, tmp_path / family, dtype), method)
    parts = streamed(tmp_path / "parts", given)
    whole = in_memory(tmp_path / "whole", given)
    plans = [(tmp_path / place / "plan.json").read_text() for place in ("parts", "whole")]
    assert plans[0] == plans[1]
    assert lowrank_layers(compressor.load(tmp_path / "parts"))
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    figures = ("loss", "accuracy", "perplexity", "tokens")
    for side, names in (("dense", figures), ("compressed", (*figures, "kl_to_dense"))):
        for name in names:
            assert parts[side][name] == pytest.approx(whole[side][name], rel=1e-5, abs=1e-6)
    assert parts["data"]["test"] == whole["data"]["test"]
    assert parts["largest_unit"] < parts["parameters"] / 2


def test_recipes_are_judged_alike_and_plans_replay_both_ways(tmp_path) -> None:
    given = asked(language.save("llama", tmp_path / "llama"), "nc1")
    parts = streamed(tmp_path / "parts", given)
    whole = in_memory(tmp_path / "whole", given)
    judged = {choice["label"]: choice["kl"] for choice in parts["selection"]}
    expected = {choice["label"]: choice["kl"] for choice in whole["selection"]}
    refitted = expected.keys() - judged.keys()
    assert len(judged) > 4
    assert len(refitted) == 1
    assert refitted.pop().endswith("refitted")
    assert judged == {label: pytest.approx(expected[label], rel=1e-6) for label in judged}
    assert any("without the sequential refit" in note for note in parts["notes"])

    replay = {**given, "method": MethodSettings(), "plan": tmp_path / "parts" / "plan.json"}
    in_memory(tmp_path / "again", replay)
    assert_same_weights(tmp_path / "parts", tmp_path / "again")
    plan = json.loads((tmp_path / "whole" / "plan.json").read_text())
    plan["recipe"]["refit"] = 0.1
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(UsageError, match="refits factors in sequence"):
        streamed(tmp_path / "no", {**replay, "plan": path})
    plan["recipe"]["refit"] = None
    path.write_text(json.dumps(plan))
    in_memory(tmp_path / "plain", {**replay, "plan": path})
    streamed(tmp_path / "back", {**replay, "plan": path})
    assert_same_weights(tmp_path / "back", tmp_path / "plain")
    with pytest.raises(UsageError, match="which needs data: give --data"):
        streamed(tmp_path / "no", {**replay, "plan": path, "data": None})


class Killed(BaseException):
    """Stands for SIGKILL: nothing may handle it."""


def dying_after(monkeypatch, target, name, calls) -> list[int]:
    """Have a function die at the call after so many; return a list as long as the calls were."""
    original, seen = getattr(target, name), []

    def counted(*args, **kwargs):
        if len(seen) == calls:
            raise Killed
        seen.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, counted)
    return seen


@pytest.mark.parametrize(
    ("target", "name", "calls"),
    [
        pytest.param(_Run, "_onward", 1, marks=pytest.mark.slow),
        (_Run, "_back_through", 1),
        (writing, "write_shard", 2),
        pytest.param(run, "evaluated", 0, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(target, name, calls, tmp_path, monkeypatch) -> None:
    model = language.save("llama", tmp_path / "llama")
    given = asked(model, "nc1")
    few = guided.METRIC_GRID[:2]
    monkeypatch.setattr(guided, "WEIGHT_GRID", ())
    monkeypatch.setattr(guided, "metric_grid", lambda found: few)
    streamed(tmp_path / "undisturbed", given)
    done = dying_after(monkeypatch, target, name, calls)
    with pytest.raises(Killed):
        streamed(tmp_path / "out", {**given, "resume": True})
    monkeypatch.undo()
    monkeypatch.setattr(guided, "WEIGHT_GRID", ())
    monkeypatch.setattr(guided, "metric_grid", lambda found: few)
    rest = dying_after(monkeypatch, target, name, 1000)
    streamed(tmp_path / "out", {**given, "resume": True})
    total = {"_onward": 2, "_back_through": 2, "write_shard": 5, "evaluated": 1}[name]
    assert len(done) == calls
    assert len(rest) == total - calls  # what was finished is not made again
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "undisturbed")
    assert not list(tmp_path.glob(".*"))


def test_other_data_begins_anew(tmp_path, monkeypatch) -> None:
    model = language.save("llama", tmp_path / "llama")
    given = asked(model, "svd-llm")
    dying_after(monkeypatch, writing, "write_shard", 2)
    with pytest.raises(Killed):
        streamed(tmp_path / "out", {**given, "resume": True})
    monkeypatch.undo()
    other = tmp_path / "other.txt"
    other.write_text(language.text(seed=1))
    given["data"] = given["data"].model_copy(update={"data": str(other)})
    streamed(tmp_path / "out", {**given, "resume": True})
    streamed(tmp_path / "undisturbed", given)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "undisturbed")


def test_what_needs_the_whole_model_is_refused(tmp_path) -> None:
    given = asked(language.save("llama", tmp_path / "llama"), "svd-llm")

    def refused(match: str, **method) -> None:
        settings = MethodSettings(**{"method": "svd-llm", "budget": BUDGET, **method})
        with pytest.raises(UsageError, match=match):
            streamed(tmp_path / "out", {**given, "method": settings})

    for method in ("measured-kl", "aimet", "zs-svd"):
        refused("needs the whole model", method=method)
    refused("only running that would tell", budget=("drop=1",))
    refused("only running that would tell", budget=("latency=50%",))
    refused("made of gradients", method="gfwsvd", gradients=False)
    elsewhere = {**given, "model": given["model"].model_copy(update={"device": "cuda"})}
    with pytest.raises(UsageError, match="computes on the CPU"):
        streamed(tmp_path / "out", elsewhere)
    with pytest.raises(ModelError, match="more than the hidden state"):
        streamed(tmp_path / "out", asked(language.save("t5", tmp_path / "t5"), "svd-llm"))
    weights_alone = asked(tmp_path / "t5", "svd-energy", resume=True)
    with pytest.raises(ModelError, match="more than the hidden state"):
        streamed(tmp_path / "out", weights_alone)
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "t5", "corpus.txt"}


def test_a_buffer_that_is_not_on_disk_is_made_in_compressed_models_too(
    tmp_path, monkeypatch
) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(
        vocab_size=len(language.SPECIAL) + len(language.WORDS), hidden_size=32,
        intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2,
        n_group=2, topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, pad_token_id=2, eos_token_id=1,
        bos_token_id=1,
    )  # fmt: skip
    model = transformers.DeepseekV3ForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
    language.tokenizer().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    state = load_file(path)
    assert state.pop("model.layers.1.mlp.gate.e_score_correction_bias") is not None
    save_file(state, path, metadata={"format": "pt"})
    monkeypatch.setattr(guided, "FORWARD_GRID", guided.FORWARD_GRID[:1])
    given = asked(tmp_path / "model", "nc1")
    given["method"] = MethodSettings(method="nc1", budget=BUDGET, gradients=False)
    found = streamed(tmp_path / "out", given)
    assert len(found["selection"]) == 1
    assert found["compressed"]["perplexity"] > 0


def test_flops_are_counted_at_the_length_of_the_data(tmp_path) -> None:
    given = asked(language.save("llama", tmp_path / "llama"), "svd")
    given["method"] = MethodSettings(method="svd", budget=("flops=80%",))
    streamed(tmp_path / "parts", given)
    in_memory(tmp_path / "whole", given)
    plans = [(tmp_path / place / "plan.json").read_text() for place in ("parts", "whole")]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("stored", ["the head alone", "both alike", "both, and they differ"])
def test_a_table_that_the_head_shares_may_lie_on_disk_in_any_way(stored, tmp_path) -> None:
    model = language.build("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    place = tmp_path / "model"
    model.save_pretrained(place)
    language.tokenizer().save_pretrained(place)
    state = load_file(place / "model.safetensors")
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    assert head not in state
    state[head] = state[table].clone()
    if stored == "the head alone":
        del state[table]
    if stored == "both, and they differ":
        state[head] *= 2
    save_file(state, place / "model.safetensors", metadata={"format": "pt"})
    given = asked(place, "svd-llm")
    parts = streamed(tmp_path / "parts", given)
    whole = in_memory(tmp_path / "whole", given)
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    assert parts["parameters"] == whole["dense"]["parameters"]
    assert parts["compressed_parameters"] == whole["compressed"]["parameters"]
    for side in ("dense", "compressed"):
        assert parts[side]["loss"] == pytest.approx(whole[side]["loss"], rel=1e-5)
