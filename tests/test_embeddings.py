"""Embeddings as a layer kind: alone, and tied to the layer that makes the logits."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

import compressor
from compressor.collapse.capture import fisher_gradient
from compressor.collapse.token_capture import capture_tokens
from compressor.layers.search import find_candidates
from compressor.methods.factorize import Decompositions, factorized
from compressor.methods.lookup import SMOOTHING, truncated_lookup
from compressor.methods.recipe import Recipe
from compressor.pipeline import compress_model, evaluate_model
from compressor.progress import SILENT
from compressor.settings import CompressSettings, DataSettings, MethodSettings, ModelSettings
from compressor.tokens import TokenForward
from tests import language
from tests.collapse.test_token_capture import batches

DATA = {"max_length": 24, "calibration": 8, "limit": 4}
TABLE, HEAD = "model.embed_tokens", "lm_head"


def build(*, tied):
    """Return a small Llama; its own config ties or unties the embeddings."""
    import transformers

    torch.manual_seed(0)
    config = language.build("llama").config
    config.tie_word_embeddings = tied
    config.hidden_size, config.vocab_size = 32, 96
    return transformers.LlamaForCausalLM(config).eval()


def save(directory, *, tied):
    build(tied=tied).save_pretrained(directory)
    language.tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text(language.text())
    return file


def settings(model, corpus, out, **method):
    return CompressSettings(
        model=ModelSettings(model=str(model)),
        data=DataSettings(data=str(corpus), **DATA),
        method=MethodSettings(include=("embeddings",), **method),
        out=out,
    )


@pytest.fixture(scope="module")
def both(corpus, tmp_path_factory):
    """Return, by whether embeddings were tied, the report and the directory of a small model."""
    found = {}
    for tied in (True, False):
        directory = tmp_path_factory.mktemp("models")
        model = save(directory / "dense", tied=tied)
        made = settings(model, corpus, directory / "small", budget=("layers=60%",))
        found[tied] = (compress_model(made, progress=SILENT), directory / "small")
    return found


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def small(request, both):
    return (request.param, *both[request.param])


def test_the_table_is_left_dense_by_default():
    found = find_candidates(build(tied=True), batches()[0][0])
    assert "--include embeddings" in found.left_dense[TABLE] or "shared" in found.left_dense[TABLE]
    assert TABLE not in found.layers


def test_costs_count_the_shared_table_once():
    tied = find_candidates(build(tied=True), batches()[0][0], include=["embeddings"])
    assert tied.layers[TABLE].tied == (HEAD,)
    assert HEAD not in {*tied.layers, *tied.left_dense}
    assert tied.layers[TABLE].cost(4) == 4 * (96 + 32 + 32)
    untied = find_candidates(build(tied=False), batches()[0][0], include=["embeddings"])
    assert untied.layers[TABLE].cost(4) == 4 * (96 + 32)
    assert untied.layers[HEAD].shape == (96, 32)


def test_a_table_whose_other_user_must_stay_is_refused_with_the_arithmetic():
    found = find_candidates(
        build(tied=True), batches()[0][0], include=["embeddings"], exclude=[HEAD]
    )
    assert TABLE not in found.layers
    assert "shared with lm_head" in found.left_dense[TABLE]
    assert "rank r would add 128·r weights and free none" in found.left_dense[TABLE]


def test_budget_and_report_hold(small):
    tied, report, _ = small
    names = {layer.name for layer in report.layers}
    assert TABLE in names
    assert (HEAD in names) is not tied
    assert report.compressed.layer_parameters <= 0.6 * report.dense.layer_parameters
    table = next(layer for layer in report.layers if layer.name == TABLE)
    assert 0 <= table.energy_lost <= 1
    assert report.compressed.kl_to_dense > 0


def test_they_load_the_same_in_another_process_and_stay_tied(both):
    ids = torch.arange(6, 16)[None]
    code = (
        "import sys, json, torch, compressor\n"
        "from transformers import AutoModelForCausalLM\n"
        "found = []\n"
        "for directory in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(directory).eval()\n"
        "    with torch.no_grad():\n"
        "        logits = model(input_ids=torch.arange(6, 16)[None]).logits\n"
        "    table, head = model.model.embed_tokens, model.lm_head\n"
        "    tied = table.weight is head.weight if hasattr(head, 'down') else False\n"
        "    found.append([logits.tolist(), tied, type(table).__name__])\n"
        "print(json.dumps(found))\n"
    )
    directories = [str(directory) for _, directory in both.values()]
    done = subprocess.run(
        [sys.executable, "-c", code, *directories], capture_output=True, text=True, check=True
    )
    for (tied, (_, directory)), found in zip(both.items(), json.loads(done.stdout), strict=True):
        again, stays_tied, kind = found
        with torch.no_grad():
            logits = compressor.load(directory)(input_ids=ids).logits
        assert torch.equal(torch.tensor(again), logits)
        if kind == "LowRankEmbedding":
            assert stays_tied is tied


def test_the_shared_table_is_stored_once_and_generates(small):
    tied, report, directory = small
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    rank = next(layer.rank for layer in report.layers if layer.name == TABLE)
    if rank < 32:
        assert f"{TABLE}.up.weight" in names
    assert (f"{HEAD}.weight" in names) is not tied
    model = compressor.load(directory)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    prompt = torch.tensor([[6, 7, 8]])
    cached = model.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **options))


def test_dense_again_is_tied_again(small):
    tied, _, directory = small
    model = compressor.load(directory)
    ids = torch.arange(6, 16)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        dense = model.dequantize()
        torch.testing.assert_close(dense(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)
    assert (dense.lm_head.weight is dense.model.embed_tokens.weight) is tied


@pytest.mark.parametrize("asked", [{"method": "svd"}, {"gradients": False}, {"blockwise": True}])
def test_other_ways_take_embeddings_too(asked, corpus, tmp_path):
    model = save(tmp_path / "dense", tied=True)
    made = settings(model, corpus, tmp_path / "small", budget=("layers=50%",), **asked)
    report = compress_model(made, progress=SILENT)
    again = evaluate_model(
        ModelSettings(model=str(tmp_path / "small")), made.data, seed=0, progress=SILENT
    )
    assert again.perplexity == pytest.approx(report.compressed.perplexity, rel=1e-6)


def measured(model):
    candidates = find_candidates(model, batches()[0][0], include=["embeddings"])
    found = capture_tokens(
        model, batches(), candidates, forward=TokenForward(), gradients=True, seed=3
    )
    return candidates, found.layers


def test_the_lookups_fisher_is_that_of_one_hot_rows():
    model = build(tied=False)
    found = measured(model)[1][TABLE]
    weight = model.model.embed_tokens.weight.detach().double()
    draws, near, pulled, count = torch.Generator().manual_seed(3), 0, 0, 0
    for inputs, labels in batches():
        met = []
        hook = model.model.embed_tokens.register_forward_hook(
            lambda module, args, output, met=met: met.append(output)
        )
        logits = model(**inputs).logits
        hook.remove()
        drawn = torch.zeros_like(logits)
        drawn[labels >= 0] = fisher_gradient(logits[labels >= 0], draws, temperature=1.0)
        (delta,) = torch.autograd.grad(logits, met[0], drawn)
        deltas = delta.flatten(0, 1).double()
        for token, d in zip(inputs["input_ids"].flatten(), deltas, strict=True):
            near = near + torch.outer(d, d)
            pulled = pulled + (d @ d) * torch.outer(weight[token], weight[token])
            count += 1
    torch.testing.assert_close(found.fisher.near, near / count, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.fisher.pulled, pulled / count, rtol=1e-3, atol=1e-6)
    ids = torch.cat([inputs["input_ids"].flatten() for inputs, _ in batches()])
    assert torch.equal(found.counts, torch.bincount(ids, minlength=96).double())


def test_by_frequency_the_mean_error_of_looked_up_rows_is_least():
    model = build(tied=False)
    _, layers = measured(model)
    found, weight = layers[TABLE], model.model.embed_tokens.weight.detach().double().T
    shares = found.counts / found.counts.sum()
    shares = (1 - SMOOTHING) * shares + SMOOTHING / len(shares)
    up, down = truncated_lookup("covariance")(weight, found, Recipe()).decomposition.factors(5)
    lost = float(((weight - up @ down).square() * shares).sum())
    values = torch.linalg.svdvals(weight * shares.sqrt())
    assert lost == pytest.approx(float(values[5:].square().sum()), rel=1e-6)


def test_a_tied_table_heeds_both_of_its_uses():
    model = build(tied=True)
    candidates, layers = measured(model)
    found = layers[TABLE]
    assert found.head.layer.name == HEAD
    assert found.head.fisher.energy > 0
    made = Decompositions(model, candidates.layers, layers)
    ranks = {TABLE: 8}
    small = factorized(model, candidates.layers, ranks, Recipe(metric="fisher"), made)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert small.lm_head.weight.shape == (96, 8)
    torch.testing.assert_close(
        small.model.embed_tokens.up.weight, small.lm_head.down.weight.T, rtol=0, atol=0
    )
