"""How a model fares on the test samples, and what it costs."""

from __future__ import annotations

from pydantic import Field

from compressor.schema.strict import Strict


class ClassFigures(Strict):
    """How a model fares on the test samples of one class.

    Args:
        name: Name of the class.
        samples: Test samples of it.
        accuracy: Share of them classified correctly; None where there are none.
    """

    name: str
    samples: int
    accuracy: float | None


class QualityFigures(Strict):
    """How a model fares on the test samples.

    Args:
        accuracy: Share of test samples classified correctly, or None without labels.
        loss: Mean cross entropy on the test samples in nats, or None without labels.
        kl_to_dense: Mean KL(dense ‖ compressed) in nats (compressed only).
        agreement: Share of test samples on which both predict alike (compressed only).
        perplexity: exp(loss) of each token, where tokens are predicted; accuracy, loss, KL and
            agreement are then means over tokens.
        byte_perplexity: exp of the loss per UTF-8 byte of the predicted text: comparable between
            tokenizers.
        tokens: Tokens predicted.
        metrics: Every registered quality metric that has a meaning here, by name.
        per_class: Accuracy of each class, in the data's order; empty without labels.
    """

    accuracy: float | None
    loss: float | None
    kl_to_dense: float | None = None
    agreement: float | None = None
    perplexity: float | None = None
    byte_perplexity: float | None = None
    tokens: int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    per_class: tuple[ClassFigures, ...] = ()


class ModelFigures(QualityFigures):
    """A model's quality, as in `QualityFigures`, and its cost.

    Args:
        parameters: All parameters.
        layer_parameters: Weights of the layers that can be factorized.
        bytes: Size of the weight files on disk.
        flops: Floating-point operations of one sample's forward (a multiply-add counts two).
    """

    parameters: int
    layer_parameters: int
    bytes: int | None
    flops: int
