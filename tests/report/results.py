"""Results with awkward names and numbers, for the tests of the views."""

from compressor.schema import (
    Choice,
    DataFigures,
    DenseLayer,
    InspectedLayer,
    LayerFigures,
    MeasuredLayer,
    ModelFigures,
    Report,
    SplitFigures,
)

LONG_NAME = "model.encoder.layers.11.attention.self.in_proj_with_a_long_name[0].dense"


def split(samples):
    return SplitFigures(samples=samples, sha256="ab" * 32)


DATA = DataFigures(
    reference="data/a-directory-with-a-rather-long-name/and-another-inside-it/files",
    classes=52,
    calibration=split(1024),
    selection=split(256),
    test=split(2568),
    notes=("3 images could not be read and were skipped: a.png, b.png, c.png",),
)
LAYER = LayerFigures(
    name=LONG_NAME,
    kind="linear",
    shape=(3072, 12288),
    rank=1024,
    full_rank=3072,
    break_even_rank=2457,
    parameters=15_728_640,
    nc1_quotient=12345.678,
    nc1=0.5,
    cdnv=0.25,
    nc1_quotient_output=0.6,
    bound=0.4,
    energy_lost=0.0312,
)
KEPT_DENSE = LAYER.model_copy(
    update={
        "name": "blocks.0.mlp.fc1",
        "rank": 3072,
        "parameters": 3072 * 12288,
        "nc1_quotient": None,
        "bound": None,
        "energy_lost": None,
    }
)
MEASURED = MeasuredLayer(
    name=LONG_NAME,
    kind="conv2d",
    shape=(3072, 12288),
    full_rank=3072,
    break_even_rank=2457,
    nc1_quotient=113.0,
    nc1=2.0,
    nc1_kept=51,
    cdnv=1.5,
    tcv=3.0,
    tcv_relative=0.5,
    nearest_mean_mismatch=0.123,
    nc1_quotient_output=None,
    nc1_output=None,
    cdnv_output=None,
    stable_rank=12.3,
    effective_rank=1234.5,
    numerical_rank=3072,
    stable_rank_data=None,
    effective_rank_data=None,
    numerical_rank_data=None,
)
INSPECTED = InspectedLayer(
    name=LONG_NAME,
    kind="conv2d",
    shape=(3072, 12288),
    parameters=37_748_736,
    full_rank=3072,
    break_even_rank=2457,
    flops=75_497_472,
)
LEFT_DENSE = (
    DenseLayer(name="classifier", reason="head"),
    DenseLayer(name=LONG_NAME, reason="its parent reads the weight directly"),
)


def report(*, dense=0.922, compressed=0.917, samples=2568, agreement=0.98, selection=None):
    """Return a report of a compression from one accuracy to another."""
    figures = ModelFigures(
        accuracy=dense,
        loss=0.3,
        parameters=22_713_216,
        layer_parameters=10_616_832,
        bytes=45_437_656,
        flops=1_500_000_000,
    )
    return Report(
        model="models/minilm",
        framework="transformers",
        model_sha256=None,
        method="nc1",
        budget=("layers=60%",),
        seed=0,
        device="cpu",
        command="compressor compress …",
        created="2026-01-01T00:00:00Z",
        versions={"torch": "2"},
        data=DATA.model_copy(update={"test": split(samples)}),
        dense=figures,
        compressed=figures.model_copy(
            update={
                "accuracy": compressed,
                "layer_parameters": 6_370_099,
                "bytes": 36_900_000,
                "agreement": agreement,
                "kl_to_dense": 0.0156,
            }
        ),
        layers=(LAYER, KEPT_DENSE),
        left_dense=LEFT_DENSE,
        selection=selection
        or (
            Choice(label="whitened β=0", kl=0.02, accuracy=0.9, guided=False, chosen=False),
            Choice(label="nc1 β=0.5", kl=0.015, accuracy=0.91, guided=True, chosen=True),
        ),
        seconds={"load": 1.0, "measure": 7.25},
        out="a-directory/with/a-rather-long-path/that-does-not-fit/in-eighty-columns/at-all/out",
    )
