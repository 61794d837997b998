import warnings

import pytest
import torch
from torch import nn

from compressor.collapse.clusters import ClusteredBatches, cluster_labels, kmeans
from compressor.collapse.metrics import nc1_quotient
from compressor.collapse.moments import ClassMoments
from compressor.errors import DataError, LayerError
from compressor.forward import Forward


def blobs(clusters=3, each=10, features=4, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(clusters * each) % clusters
    centres = torch.eye(clusters, features) * 10
    noise = torch.randn(len(truth), features, generator=generator) * 0.1
    return centres[truth] + noise + offset, truth


def same_partition(one, other):
    return torch.equal(one[:, None] == one, other[:, None] == other)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_clusters_far_apart_are_found(offset):
    embeddings, truth = blobs(offset=offset)
    found = kmeans(embeddings, 3, seed=0)
    assert found.dtype == torch.int64
    assert same_partition(found, truth)


def test_the_same_seed_gives_the_same_clusters():
    embeddings = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(kmeans(embeddings, 6, seed=3), kmeans(embeddings, 6, seed=3))


def test_clusters_vary_less_than_classes_that_mean_nothing():
    embeddings = torch.randn(200, 5, generator=torch.Generator().manual_seed(2))

    def quotient(labels):
        moments = ClassMoments(8, 5)
        moments.update(embeddings, labels)
        return nc1_quotient(moments)

    assert quotient(kmeans(embeddings, 8, seed=0)) < quotient(torch.arange(200) % 8) / 4


def test_at_most_half_as_many_clusters_as_samples():
    embeddings = torch.randn(10, 3, generator=torch.Generator().manual_seed(3))
    assert len(kmeans(embeddings, 1000, seed=0).unique()) == 5
    assert kmeans(embeddings[:1], 1000, seed=0).tolist() == [0]


def test_duplicates_only_are_one_cluster_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kmeans(torch.ones(12, 3), 4, seed=0).unique().tolist() == [0]


class Reader(nn.Module):
    """Maps tokens [B, T, n], averages the real ones and classifies them."""

    def __init__(self, features=4, classes=3):
        super().__init__()
        self.body = nn.Linear(features, features)
        nn.init.eye_(self.body.weight)
        nn.init.zeros_(self.body.bias)
        self.head = nn.Linear(features, classes)
        self.unused = nn.Linear(features, features)

    def forward(self, tokens, attention_mask=None):
        return self.head(self.body(tokens).mean(1))


def batches_of(inputs, size=7):
    return [(part, None) for part in inputs.split(size)]


def test_batches_without_labels_come_back_with_clusters():
    embeddings, truth = blobs()
    batches = batches_of(embeddings[:, None].expand(-1, 5, -1))
    found = cluster_labels(Reader().eval(), batches, "body", 3, forward=Forward(), seed=0)
    for _ in range(2):  # they can be read more than once
        read = list(found)
        assert all(a is b for (a, _), (b, _) in zip(read, batches, strict=True))
        assert [len(labels) for _, labels in read] == [7, 7, 7, 7, 2]
        assert same_partition(torch.cat([labels for _, labels in read]), truth)


def test_padding_has_no_part_in_the_embedding():
    embeddings, truth = blobs()
    tokens = embeddings[:, None].repeat(1, 4, 1)
    generator = torch.Generator().manual_seed(4)
    tokens[:, 2:] = torch.randn(30, 2, 4, generator=generator) * 1000
    mask = torch.tensor([1, 1, 0, 0]).expand(30, 4)
    batches = [({"tokens": tokens, "attention_mask": mask}, None)]
    found = cluster_labels(Reader().eval(), batches, "body", 3, forward=Forward(), seed=0)
    assert same_partition(found.labels, truth)


class Rows(nn.Module):
    """Calls its layer on rows [B·T, n], as some models do."""

    def __init__(self, layer, arrange):
        super().__init__()
        self.layer, self.arrange = layer, arrange

    def forward(self, inputs):
        output = self.layer(self.arrange(inputs))
        return output.reshape(len(inputs), -1)


@pytest.mark.parametrize(
    ("layer", "arrange"),
    [
        (nn.Identity(), lambda x: x[:, None].expand(-1, 3, -1).reshape(-1, 4)),  # (B·T, n)
        (nn.Identity(), lambda x: x[:, None, None].expand(-1, 2, 3, -1)),  # (B, H, W, n)
        (nn.Conv2d(4, 4, 1), lambda x: x[:, :, None, None].expand(-1, -1, 2, 3)),  # (B, n, H, W)
    ],
    ids=["flattened", "channels last", "convolution"],
)
def test_outputs_of_any_layout_are_pooled_by_sample(layer, arrange):
    embeddings, truth = blobs()
    if isinstance(layer, nn.Conv2d):
        nn.init.dirac_(layer.weight)
    model = Rows(layer, arrange).eval()
    found = cluster_labels(model, batches_of(embeddings), "layer", 3, forward=Forward(), seed=0)
    assert same_partition(found.labels, truth)


class Twice(Reader):
    def forward(self, tokens):
        return self.head(self.body(self.body(tokens)).mean(1))


def test_a_layer_called_twice_gives_one_embedding_a_sample():
    embeddings, truth = blobs()
    batches = batches_of(embeddings[:, None])
    found = cluster_labels(Twice().eval(), batches, "body", 3, forward=Forward(), seed=0)
    assert same_partition(found.labels, truth)


class InPlace(Reader):
    def forward(self, tokens):
        return self.head(self.body(tokens).mul_(0).mean(1))


def test_an_output_that_is_overwritten_is_read_before():
    embeddings, truth = blobs()
    batches = batches_of(embeddings[:, None])
    found = cluster_labels(InPlace().eval(), batches, "body", 3, forward=Forward(), seed=0)
    assert same_partition(found.labels, truth)


def test_a_gradient_can_follow_the_pass():
    model = Reader().eval()
    inputs = blobs()[0][:, None]
    cluster_labels(model, batches_of(inputs), "body", 3, forward=Forward(), seed=0)
    model(inputs).sum().backward()
    assert model.body.weight.grad is not None


def test_a_layer_that_is_not_called():
    batches = batches_of(blobs()[0][:, None])
    with pytest.raises(LayerError, match="unused: it is not called"):
        cluster_labels(Reader().eval(), batches, "unused", 3, forward=Forward(), seed=0)


def test_outputs_that_do_not_belong_to_samples():
    model = Rows(nn.Identity(), lambda x: x.T).eval()
    with pytest.raises(LayerError, match="does not belong to 7 samples"):
        cluster_labels(model, batches_of(blobs()[0]), "layer", 3, forward=Forward(), seed=0)


def test_outputs_that_are_not_finite():
    model = Reader().eval()
    with torch.no_grad():
        model.body.bias[0] = float("nan")
    with pytest.raises(LayerError, match="body: its output holds NaN or Inf"):
        cluster_labels(model, batches_of(blobs()[0][:, None]), "body", 3, forward=Forward(), seed=0)


def test_no_batch():
    with pytest.raises(DataError, match="no batch"):
        cluster_labels(Reader().eval(), [], "body", 3, forward=Forward(), seed=0)


def test_batches_that_grow_are_noticed():
    with pytest.raises(DataError, match="more than the 3 samples"):
        list(ClusteredBatches([(torch.zeros(4, 2), None)], torch.zeros(3, dtype=torch.long)))
