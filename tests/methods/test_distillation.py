"""The loss of learning from a dense model, against the definition, and its gradients."""

from __future__ import annotations

import pytest
import torch

from compressor.errors import DataError
from compressor.forward import Forward
from compressor.methods.distillation import learn
from compressor.tokens import TokenForward
from tests import language
from tests.methods.measured import Net, batches, trained

CPU = torch.device("cpu")


def naive(logits, target, temperature):
    """Return T² KL, a mean over rows, in float64 by its definition."""
    total = 0.0
    for pair in zip(target.double(), logits.double(), strict=True):
        p, q = (torch.exp(z / temperature) / torch.exp(z / temperature).sum() for z in pair)
        total = total + (p * (p / q).log()).sum()
    return temperature**2 * total / len(logits)


def learner():
    torch.manual_seed(7)
    return Net().eval()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def expected(model, loss):
    model.zero_grad()
    loss.backward()
    return gradients(model)


def assert_alike(found, true):
    assert found.keys() == true.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, true[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_classes_are_learnt_by_predictions_and_labels(weight):
    (x, y), *_ = batches()
    model = learner()
    loss = learn(model, trained(), x, y, forward=Forward(), temperature=3.0, label_weight=weight)
    found = {name: gradient.clone() for name, gradient in gradients(model).items()}
    logits = model(x)
    hard = -logits.double().log_softmax(1)[torch.arange(len(y)), y].mean()
    true = naive(logits, trained()(x).detach(), 3.0) + weight * hard
    assert float(loss) == pytest.approx(true.item(), rel=1e-5)
    assert_alike(found, expected(model, true))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5"])
def test_tokens_are_learnt_by_the_logits_where_one_is_predicted(architecture, monkeypatch):
    monkeypatch.setattr("compressor.tokens.CHUNK_BYTES", 4 * 23 * 5)  # several chunks
    dense, model = language.build(architecture).eval(), language.build(architecture).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 23, (2, 9), generator=generator)
    labels = torch.randint(0, 23, (2, 9), generator=generator)
    labels[:, ::4] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if architecture == "t5":
        inputs["decoder_input_ids"] = ids
    loss = learn(
        model,
        dense,
        inputs,
        labels,
        forward=TokenForward(device=CPU),
        temperature=2.0,
        label_weight=4.0,
    )
    found = {name: gradient.clone() for name, gradient in gradients(model).items()}
    with torch.no_grad():
        target = dense(**inputs, use_cache=False).logits[labels >= 0]
    true = naive(model(**inputs, use_cache=False).logits[labels >= 0], target, 2.0)
    assert float(loss) == pytest.approx(true.item(), rel=1e-4)
    assert_alike(found, expected(model, true))


def test_an_equal_model_has_nothing_to_learn():
    (x, y), *_ = batches()
    loss = learn(trained(), trained(), x, y, forward=Forward(), temperature=2.0, label_weight=0.0)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    assert all(float(g.abs().max()) < 1e-6 for g in gradients(trained()).values())
    trained().zero_grad()


def test_labels_of_any_integers_serve():
    (x, y), *_ = batches()
    settings = {"forward": Forward(), "temperature": 2.0, "label_weight": 1.0}
    assert learn(learner(), trained(), x, y.int(), **settings) == learn(
        learner(), trained(), x, y, **settings
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [(None, "no labels"), (torch.full((16,), 4), "4 is none of the model's 4 classes")],
)
def test_labels_that_cannot_teach_are_refused(labels, message):
    (x, _), *_ = batches()
    with pytest.raises(DataError, match=message):
        learn(learner(), trained(), x, labels, forward=Forward(), temperature=2.0, label_weight=1.0)
