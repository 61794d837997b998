import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.errors import DataError, ModelError
from compressor.evaluation.loop import Evaluation, evaluate, kl_divergence, score
from compressor.forward import Forward


def small_model(seed=0, classes=4):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes)
    )


def batches_of(inputs, labels, size):
    parts = labels.split(size) if labels is not None else [None] * len(inputs.split(size))
    return list(zip(inputs.split(size), parts, strict=True))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(30, 6, generator=generator),
        torch.randint(0, 4, (30,), generator=generator),
    )


def log_softmax(logits):
    logits = logits.numpy().astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def test_scores_are_those_of_numpy(data):
    inputs, labels = data
    model, dense = small_model(0), small_model(1)
    dense_logits = evaluate(dense, batches_of(inputs, labels, 9)).logits
    found = evaluate(model, batches_of(inputs, labels, 7), dense_logits=dense_logits)
    with torch.no_grad():
        logits = model.eval()(inputs)
    log_q, log_p = log_softmax(logits), log_softmax(dense_logits)
    picked = log_q[np.arange(30), labels.numpy()]
    assert found.samples == 30
    torch.testing.assert_close(found.logits, logits)
    assert found.accuracy == np.mean(log_q.argmax(1) == labels.numpy())
    assert found.loss == pytest.approx(-picked.mean(), rel=1e-6)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    assert found.kl_to_dense == pytest.approx(divergence, rel=1e-6)
    assert found.agreement == np.mean(log_p.argmax(1) == log_q.argmax(1))


def test_a_model_agrees_with_itself(data):
    model, batches = small_model(), batches_of(*data, 8)
    logits = evaluate(model, batches).logits
    again = evaluate(model, batches, dense_logits=logits)
    assert (again.kl_to_dense, again.agreement) == (0.0, 1.0)
    assert torch.equal(again.logits, logits)


def test_without_labels_there_is_no_accuracy(data):
    found = evaluate(small_model(), batches_of(data[0], None, 8))
    assert found.accuracy is found.loss is found.kl_to_dense is found.agreement is None
    assert found.samples == 30


def test_every_module_gets_its_own_mode_back(data):
    model = small_model().train()
    model[1].eval()  # a frozen BatchNorm in a model that trains
    modes = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    evaluate(model, batches_of(*data, 8))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[1].running_mean, statistics)


def test_modes_come_back_after_an_error(data):
    model = small_model().train()
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.zeros(2, 5), None)])
    assert all(module.training for module in model.modules())


def test_logits_may_be_used_with_gradients_afterwards(data):
    logits = evaluate(small_model(), batches_of(*data, 30)).logits
    scale = torch.ones((), requires_grad=True)
    (logits * scale).sum().backward()
    assert scale.grad is not None


def test_part_of_the_classes(data):
    model, kept = small_model(), torch.tensor([2, 0])
    forward = Forward(classes=kept)
    found = evaluate(model, batches_of(data[0], data[1] % 2, 8), forward=forward)
    whole = evaluate(model, batches_of(data[0], None, 8))
    assert torch.equal(found.logits, whole.logits[:, kept])
    assert found.accuracy == float((found.logits.argmax(1) == data[1] % 2).double().mean())


def test_progress_sees_every_batch(data):
    class Seen:
        def track(self, items, *, description, total):
            self.asked = (description, total)
            self.items = list(items)
            yield from self.items

        def note(self, message):
            raise AssertionError(message)

    progress = Seen()
    evaluate(small_model(), batches_of(*data, 8), progress=progress, description="test", total=4)
    assert progress.asked == ("test", 4)
    assert len(progress.items) == 4


@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))]])
def test_nothing_to_evaluate(batches):
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(small_model(), batches)


def test_labels_in_some_batches_only(data):
    batches = batches_of(*data, 10)
    batches[1] = (batches[1][0], None)
    with pytest.raises(DataError, match="1 of 3 batches carry no labels"):
        evaluate(small_model(), batches)


@pytest.mark.parametrize("label", [-100, 4])
def test_labels_out_of_range(data, label):
    labels = data[1].clone()
    labels[3] = label
    with pytest.raises(DataError, match=f"outside 0…3.*{label}"):
        evaluate(small_model(), batches_of(data[0], labels, 8))


def test_labels_that_are_not_one_a_sample(data):
    with pytest.raises(DataError, match="one class number a sample"):
        evaluate(small_model(), [(data[0], torch.zeros(30, 4, dtype=torch.long))])


def test_nan_weights_are_an_error_and_no_accuracy(data):
    model = small_model()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="30 of 30"):
        evaluate(model, batches_of(*data, 8))


def test_dense_logits_of_other_data(data):
    with pytest.raises(ValueError, match=r"\(29, 4\).*\(30, 4\)"):
        evaluate(small_model(), batches_of(*data, 8), dense_logits=torch.zeros(29, 4))


def test_the_logits_stay_out_of_the_repr():
    shown = repr(score(torch.zeros(3, 2), None))
    assert "tensor" not in shown
    assert shown.startswith(f"{Evaluation.__name__}(samples=3")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 9), st.floats(0.01, 60))
def test_kl_is_never_negative_and_does_not_see_shifts(seed, samples, classes, scale):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(samples, classes, generator=generator, dtype=torch.float64) * scale
    q = torch.randn(samples, classes, generator=generator, dtype=torch.float64) * scale
    log_p, log_q = log_softmax(p), log_softmax(q)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    assert kl_divergence(p, q) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert kl_divergence(p, q) >= 0
    assert kl_divergence(p, p + 5.0) == pytest.approx(0, abs=1e-12)


def test_classes_are_counted_one_by_one(data):
    _, labels = data
    logits = torch.randn(30, 5, generator=torch.Generator().manual_seed(2))  # class 4 never occurs
    found = score(logits, labels).per_class
    for index, counted in enumerate(found):
        own = [row for row in range(30) if labels[row] == index]
        assert counted.samples == len(own)
        assert counted.correct == sum(int(logits[row].argmax()) == index for row in own)
    assert len(found) == 5
    assert found[4].samples == 0
    assert score(logits, None).per_class == ()
