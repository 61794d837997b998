"""Language models through the whole job: read, measure, compress, evaluate, load, generate."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import compressor
from compressor.cli import main
from compressor.data import load_data
from compressor.evaluation.paired import share_loss
from compressor.methods.method import METHODS
from compressor.models import load_model
from compressor.pipeline import compress_model, evaluate_model, inspect_model, measure_model
from compressor.progress import SILENT
from compressor.settings import CompressSettings, DataSettings, MethodSettings, ModelSettings
from compressor.tokens import Head, TokenForward
from tests import language

DATA = {"max_length": 24, "calibration": 12, "limit": 8}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    (directory / "train.txt").write_text(language.text())
    (directory / "test.txt").write_text(language.text(seed=1))
    return directory


def settings(model, corpus, out, **method):
    return CompressSettings(
        model=ModelSettings(model=str(model)),
        data=DataSettings(data=str(corpus), **DATA),
        method=MethodSettings(budget=("layers=60%",), **method),
        out=out,
    )


@pytest.mark.parametrize("family", language.FAMILIES)
def test_every_family_is_compressed_loaded_and_generates(family, corpus, tmp_path):
    model = language.save(family, tmp_path / "dense")
    report = compress_model(settings(model, corpus, tmp_path / "small"), progress=SILENT)
    assert report.compressed.layer_parameters <= 0.6 * report.dense.layer_parameters
    assert report.compressed.perplexity == pytest.approx(math.exp(report.compressed.loss))
    assert report.compressed.loss != report.dense.loss
    small = compressor.load(tmp_path / "small")
    again = evaluate_model(
        ModelSettings(model=str(tmp_path / "small")),
        DataSettings(data=str(corpus), **DATA),
        seed=0,
        progress=SILENT,
    )
    assert again.perplexity == pytest.approx(report.compressed.perplexity, rel=1e-6)
    if family == "bert":
        return  # it does not generate
    prompt = torch.tensor([[6, 7, 8, 9]])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached = small.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, small.generate(prompt, use_cache=False, **options))


@pytest.mark.parametrize("family", language.FAMILIES)
def test_the_head_gives_the_models_own_logits(family):
    module = language.build(family)
    inputs = {"input_ids": torch.arange(6, 18).view(2, 6)}
    if family == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :5]
    with torch.no_grad():
        hidden = TokenForward()(module, inputs)
        logits = Head(module)(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)
        torch.testing.assert_close(logits, module(**inputs).logits)


def test_perplexity_and_kl_are_those_of_a_naive_pass(corpus, tmp_path):
    language.save("llama", tmp_path / "dense")
    loaded = load_model(ModelSettings(model=str(tmp_path / "dense")))
    data = load_data(DataSettings(data=str(corpus), **DATA), loaded, seed=0)
    dense = compressor.evaluate(loaded.module, data.test)
    other = language.build("llama")
    with torch.no_grad():
        other.lm_head.weight.add_(0.1 * torch.randn_like(other.lm_head.weight))
    found = compressor.evaluate(other, data.test, dense_logits=dense.logits)
    losses, gaps = [], []
    with torch.no_grad():
        for inputs, _ in data.test:
            p = loaded.module(**inputs).logits.double()[:, :-1].log_softmax(-1)
            q = other(**inputs).logits.double()[:, :-1].log_softmax(-1)
            losses.append(
                functional.nll_loss(q.flatten(0, 1), inputs["input_ids"][:, 1:].flatten())
            )
            gaps.append((p.exp() * (p - q)).sum(-1).mean())
    assert found.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert found.kl_to_dense == pytest.approx(float(torch.stack(gaps).mean()), rel=1e-4)
    assert found.tokens == len(data.test) * 23


def test_memory_for_logits_does_not_grow_with_the_rows(monkeypatch):
    monkeypatch.setattr("compressor.tokens.CHUNK_BYTES", 4 * 23 * 5)
    head = Head(language.build("llama"))
    assert [part.stop - part.start for part in head.chunks(torch.zeros(12, 32))] == [5, 5, 5]


def test_windows_of_the_three_splits_are_disjoint_and_named_by_hash(corpus, tmp_path):
    loaded = load_model(ModelSettings(model=str(language.save("gpt2", tmp_path / "m"))))
    only = DataSettings(data=str(corpus / "train.txt"), **DATA)
    data = load_data(only, loaded, seed=0, recovery_steps=3)
    assert len(data.recovery) == 3
    assert set(data.recovery.digests) <= set(data.calibration.digests)
    parts = [set(split.digests) for split in (data.calibration, data.selection, data.test)]
    hashes = {data.calibration.sha256, data.selection.sha256, data.test.sha256}
    assert len(hashes) == 3
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert load_data(only, loaded, seed=0).test.sha256 == data.test.sha256
    assert load_data(only, loaded, seed=1).test.sha256 != data.test.sha256


def test_conversations_go_through_the_chat_template(tmp_path):
    model = language.save("llama", tmp_path / "m")
    made = language.tokenizer()
    made.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    made.save_pretrained(model)
    lines = [
        {"messages": [{"role": "cat", "content": language.text(40, seed)}]} for seed in range(60)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    loaded = load_model(ModelSettings(model=str(model)))
    data = load_data(DataSettings(data=str(tmp_path / "chat.jsonl"), **DATA), loaded, seed=0)
    inputs, labels = next(iter(data.calibration))
    assert inputs["input_ids"].shape == (1, 24)
    assert torch.equal(labels[:, :-1], inputs["input_ids"][:, 1:])


def test_bf16_checkpoints_stay_bf16(corpus, tmp_path):
    model = language.save("llama", tmp_path / "dense", torch.bfloat16)
    compress_model(settings(model, corpus, tmp_path / "small"), progress=SILENT)
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_without_gradients_and_the_other_commands(corpus, tmp_path):
    model = ModelSettings(model=str(language.save("llama", tmp_path / "m")))
    data = DataSettings(data=str(corpus), **DATA)
    report = compress_model(
        settings(model.model, corpus, tmp_path / "s", gradients=False), progress=SILENT
    )
    assert report.data.classes == len(language.WORDS)
    found = measure_model(model, data, MethodSettings(), seed=0, progress=SILENT)
    assert all(layer.nc1_quotient > 0 for layer in found.layers)
    listed = inspect_model(model, MethodSettings(), progress=SILENT)
    assert [layer.name for layer in listed.layers] == [layer.name for layer in found.layers]
    assert "lm_head" in {layer.name for layer in listed.left_dense}


@pytest.mark.parametrize("method", [name for name in METHODS.names() if name != "measured-kl"])
def test_every_method_takes_a_language_model(method, corpus, tmp_path):
    model = language.save("llama", tmp_path / "dense")
    loaded = load_model(ModelSettings(model=str(model)))
    data = load_data(DataSettings(data=str(corpus), **DATA), loaded, seed=0)
    found = compressor.compress(
        loaded.module,
        data.calibration,
        "layers=60%",
        selection=data.selection,
        test=data.test,
        method=method,
    )
    assert found.compressed.kl_to_dense > 0


def correct_tokens(model, split):
    """Return whether each predicted token is the model's likeliest, and its window's number."""
    correct, windows = [], []
    with torch.no_grad():
        for inputs, labels in split:
            hits = model(**inputs).logits.argmax(-1) == labels
            for row in range(len(labels)):
                correct.append(hits[row][labels[row] >= 0])
                windows += [len(correct) - 1] * len(correct[-1])
    return torch.cat(correct).numpy(), torch.tensor(windows).numpy()


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_promises_of_tokens_are_judged_by_window(family, corpus, tmp_path):
    loaded = load_model(ModelSettings(model=str(language.save(family, tmp_path / "dense"))))
    data = load_data(DataSettings(data=str(corpus), **DATA, selection=40), loaded, seed=0)
    budgets = ("drop=25", "drop=90@agreement", "drop=20@perplexity")
    found = compressor.measure(
        loaded.module, data.calibration, selection=data.selection, method="svd"
    )
    made = compressor.plan(found, budgets, method="svd")
    assert any(trial.kept for trial in made.trials)
    chosen = min((trial for trial in made.trials if trial.kept), key=lambda trial: trial.share)
    by_metric = {loss.metric: loss for loss in chosen.losses}
    small = compressor.factorize(loaded.module, made)
    dense, windows = correct_tokens(loaded.module, data.selection)
    after, _ = correct_tokens(small, data.selection)
    expected = share_loss(dense, after, windows=windows, level=0.9)
    assert (expected.value, expected.low, expected.high) == pytest.approx(
        (by_metric["top-1"].value, by_metric["top-1"].low, by_metric["top-1"].high)
    )
    before, now = (
        compressor.evaluate(model, data.selection).loss for model in (loaded.module, small)
    )
    assert by_metric["perplexity"].value == pytest.approx(math.expm1(now - before))
    assert all(loss.high <= loss.most for loss in chosen.losses)
    assert by_metric["perplexity"].unit == "percent"


def test_a_promise_of_tokens_through_the_command_line(corpus, tmp_path, capsys):
    model = language.save("llama", tmp_path / "dense")
    words = ["compress", str(model), "--data", str(corpus), "--max-length", "24", "--limit", "8"]
    words += ["--calibration", "12", "--method", "svd", "--out", str(tmp_path / "small")]
    assert main([*words, "--budget", "drop=1@macro-f1"]) == 2
    refused = capsys.readouterr().err
    assert "macro F1, which has no meaning where a model predicts tokens" in " ".join(
        refused.split()
    )
    assert "measure" not in refused
    assert main([*words, "--budget", "drop=20%@perplexity", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["data"]["selection"]["samples"] > 12  # windows enough to judge by
    assert report["budgets"][0]["met"]
    assert report["budgets"][0]["limit"] == "20 % of perplexity"
    lost = {loss["metric"]: loss for loss in report["losses"]}
    assert set(lost) == {"top-1", "top-5", "log-loss", "calibration-error", "perplexity"}
    dense, small = report["dense"]["perplexity"], report["compressed"]["perplexity"]
    assert lost["perplexity"]["value"] == pytest.approx(small / dense - 1)
    page = (tmp_path / "small" / "report.html").read_text()
    assert "Search for the smallest model" in page


def test_recovery_learns_the_tokens_that_the_dense_model_predicts(corpus, tmp_path, capsys):
    model = language.save("llama", tmp_path / "dense")
    words = ["compress", str(model), "--data", str(corpus), "--max-length", "24", "--limit", "8"]
    words += ["--calibration", "24", "--method", "svd", "--budget", "layers=40%", "--json"]
    assert main([*words, "--recover", "60", "--out", str(tmp_path / "small")]) == 0
    report = json.loads(capsys.readouterr().out)
    done = report["recovery"]
    assert not done["labels"]
    assert 24 < done["data"]["samples"] <= 60
    assert done["kl_after"] < 0.9 * done["kl_before"]
    assert report["compressed"]["kl_to_dense"] < 0.9 * done["without"]["kl_to_dense"]
