"""The JSON a run prints and saves: one documented schema, with a version.

``REPORT_VERSION`` rises when a key changes its meaning or goes; new keys may appear without.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

REPORT_VERSION = 1


class Strict(BaseModel):
    """Frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Spectrum(Strict):
    """How fast the directions of one layer lose their worth, in the metric it was truncated in.

    Args:
        metric: Registered metric; ``identity`` is that of the weights themselves.
        ranks: At most 64 positions, from 1 to the full rank in steps of equal ratio.
        values: Singular value at each position over the largest; what truncation to rank r loses
            is the sum of the squares beyond r.
    """

    metric: str
    ranks: tuple[int, ...]
    values: tuple[float, ...]


class LayerFigures(Strict):
    """One candidate layer after compression.

    Args:
        name: Module name.
        kind: Registered layer kind.
        shape: Rows (outputs) and columns (inputs) of the layer's matrix.
        rank: Rank kept; equal to ``full_rank`` where the layer stayed dense.
        full_rank: min(shape).
        break_even_rank: Largest rank at which two factors are smaller than the dense matrix.
        parameters: Weights kept in this layer.
        nc1_quotient: tr Σ_W / tr Σ_B of the layer's input.
        nc1: tr(Σ_W Σ_B⁺)/C of the layer's input.
        cdnv: Class-distance normalized variance of the layer's input.
        nc1_quotient_output: tr G_W / tr G_B of the layer's output.
        bound: Most of the output's energy that the best truncation to this rank for that energy
            can lose, as a share, from collapse alone.
        energy_lost: Share that this one did lose; one that aims at the predictions, as the default
            does, may lose more.
        spectrum: Singular values in the metric of the truncation, where it was carried out.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    rank: int
    full_rank: int
    break_even_rank: int
    parameters: int
    nc1_quotient: float | None
    nc1: float | None
    cdnv: float | None
    nc1_quotient_output: float | None
    bound: float | None
    energy_lost: float | None
    spectrum: Spectrum | None = None


ALREADY_FACTORIZED = "already factorized"
"""Why the factorized layers of a compressed checkpoint are no candidates again."""


class DenseLayer(Strict):
    """A layer that is no candidate, and why."""

    name: str
    reason: str


class SplitFigures(Strict):
    """Size and content hash of one split."""

    samples: int
    sha256: str


class DataFigures(Strict):
    """The data of a run."""

    reference: str
    classes: int
    calibration: SplitFigures
    selection: SplitFigures
    test: SplitFigures
    notes: tuple[str, ...] = ()


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
    metrics: dict[str, float] = {}
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


class BudgetFigures(Strict):
    """One budget, and what the model came to.

    Args:
        budget: The budget as written.
        limit: Most that it allows, as people read it.
        reached: What the compressed model came to.
        dense: What the dense model has.
        met: Whether it is kept to.
    """

    budget: str
    limit: str
    reached: str
    dense: str
    met: bool


class PairedLoss(Strict):
    """What a compressed model loses of one metric, on the samples that both models saw.

    Args:
        metric: Registered name, or ``agreement``.
        unit: ``points`` of figures that are shares, or ``nats``.
        value: The loss, positive where the compressed model is worse; a share, or nats.
        low: Lower end of its interval.
        high: Upper end.
    """

    metric: str
    unit: Literal["points", "nats"]
    value: float
    low: float
    high: float

    @property
    def unchanged(self) -> bool:
        """Whether nothing was lost and nothing could be."""
        return self.value == self.low == self.high == 0

    @property
    def text(self) -> str:
        """The loss and its interval, in points or nats."""
        scale = 100 if self.unit == "points" else 1
        value, low, high = (
            f"{scale * number:.3g}".replace("-", "−")
            for number in (self.value, self.low, self.high)
        )
        return f"{value} {self.unit} ({low} … {high})"


class PromisedLoss(PairedLoss):
    """A loss on the selection data beside the most that a ``drop=`` budget allows of it.

    Its interval is at 90 %, so that its upper end is a one-sided bound at 95 %.
    """

    budget: str
    most: float


class Trial(Strict):
    """One step of the search for the smallest model that keeps a ``drop=`` budget.

    Args:
        share: Weights kept of the layers that can be factorized.
        losses: What was lost, a budget each.
        kept: Whether every one was kept to.
    """

    share: float
    losses: tuple[PromisedLoss, ...]
    kept: bool


class Pace(Strict):
    """A forward's time under a ``latency=`` budget, both models timed in turn; milliseconds."""

    budget: str
    dense: float
    compressed: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether the compressed model keeps to the limit."""
        return self.compressed <= self.limit


class LatencyFigures(Strict):
    """Time and memory of one forward at a batch size, both models in turn.

    Args:
        batch: Samples of the batch.
        rounds: Forwards of each that the medians are of.
        dense: Milliseconds of the dense model's forward.
        compressed: Milliseconds of the compressed one's.
        dense_memory: Bytes of the dense model's weights and of activations alive at once.
        compressed_memory: The same of the compressed one.
    """

    batch: int
    rounds: int
    dense: float
    compressed: float
    dense_memory: int
    compressed_memory: int


class LayerTime(Strict):
    """Milliseconds of one layer by itself, dense and as two thin products at its rank."""

    name: str
    rank: int
    dense: float
    compressed: float


class SpeedFigures(Strict):
    """How fast both models are on this device.

    Args:
        runtime: What both ran in.
        threads: Threads that torch had.
        input: Size of one batch, as counted and timed.
        batches: Figures at each batch size.
        layers: Each factorized layer by itself at the largest batch size, where the compressed
            model is not clearly faster there: what holds it up.
        notes: What was left out, and why.
    """

    runtime: str
    threads: int
    input: str
    batches: tuple[LatencyFigures, ...]
    layers: tuple[LayerTime, ...] = ()
    notes: tuple[str, ...] = ()


class Choice(Strict):
    """One candidate of a method's selection, judged on held-out data.

    Args:
        label: What distinguishes it.
        kl: Mean KL to the dense model on the selection data.
        accuracy: Accuracy there, or None without labels.
        guided: Whether NC1 has a part in it.
        chosen: Whether the plan follows it.
        made_from: Label of the candidate that it was made from; what NC1 guidance gained is told of
            those that were made from none.
    """

    label: str
    kl: float
    accuracy: float | None
    guided: bool
    chosen: bool
    made_from: str | None = None


class RecoveryFigures(Strict):
    """What `--recover` did, and the figures without it.

    Args:
        steps: Steps of training taken.
        best_step: Step whose factors were kept; 0 keeps those from before.
        kl_before: Mean KL to the dense model on the selection data before, in nats.
        kl_after: The same with the factors that were kept.
        without: How it fared on the test data before: the training-free result.
    """

    steps: int
    best_step: int
    kl_before: float | None
    kl_after: float | None
    without: QualityFigures


class Report(Strict):
    """report.json of one compression.

    ``compressed`` is what was saved; where factors were trained, ``recovery`` holds the figures
    from before. ``job`` is the hash of the job of a batch that made it.
    """

    version: int = REPORT_VERSION
    model: str
    framework: str
    modality: str | None = None
    model_sha256: str | None
    method: str
    budget: tuple[str, ...]
    seed: int
    device: str
    command: str | None
    created: str
    versions: dict[str, str]
    data: DataFigures
    dense: ModelFigures
    compressed: ModelFigures
    layers: tuple[LayerFigures, ...]
    left_dense: tuple[DenseLayer, ...]
    selection: tuple[Choice, ...] = ()
    budgets: tuple[BudgetFigures, ...] = ()
    unmet: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    losses: tuple[PairedLoss, ...] = ()
    speed: SpeedFigures | None = None
    norm_correction: bool | None = None
    recovery: RecoveryFigures | None = None
    seconds: dict[str, float]
    out: str
    job: str | None = None
    notes: tuple[str, ...] = ()


class InspectedLayer(Strict):
    """One candidate layer as its shapes tell it."""

    name: str
    kind: str
    shape: tuple[int, int]
    parameters: int
    full_rank: int
    break_even_rank: int
    flops: int | None


class Inspection(Strict):
    """What `inspect` prints: layers and costs, without data.

    Args:
        smallest_layers: Smallest reachable share of the candidate layers' weights.
        smallest_params: Smallest reachable share of all parameters.
    """

    model: str
    framework: str
    parameters: int
    layer_parameters: int
    bytes: int | None
    flops: int | None
    input: str | None
    layers: tuple[InspectedLayer, ...]
    left_dense: tuple[DenseLayer, ...]
    smallest_layers: float
    smallest_params: float


class MeasuredLayer(Strict):
    """Collapse and rank of one layer with the matrix W; ``*_output`` is of its output.

    Args:
        name: Module name.
        kind: Registered layer kind.
        shape: Rows (outputs) m and columns (inputs) n of W.
        full_rank: min(m, n).
        break_even_rank: Largest rank at which two factors are smaller than the dense matrix.
        nc1_quotient: tr Σ_W / tr Σ_B.
        nc1: tr(Σ_W Σ_B⁺)/C.
        nc1_kept: Between-class directions that ``nc1`` rests on.
        cdnv: Class-distance normalized variance.
        tcv: Total cluster variation tr Σ_W.
        tcv_relative: tr Σ_W / tr Σ_T.
        nearest_mean_mismatch: Share of samples whose nearest class mean, of rows averaged over the
            sample, is another class than the one the model predicts (NC4).
        stable_rank: ‖W‖_F²/‖W‖₂²; ``*_data`` is of W Σ_T^{1/2}.
        effective_rank: exp H(σ/Σσ).
        numerical_rank: Singular values above a thousandth of the largest.
        stationarity: cos(W, −∇L) of the calibration loss in W: 1 at a critical point of the
            L2-regularized loss. None where it was not asked for.
        implied_decay: −⟨W, ∇L⟩/‖W‖²: the weight decay at which W would be nearest to one.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    full_rank: int
    break_even_rank: int
    nc1_quotient: float | None
    nc1: float | None
    nc1_kept: int
    cdnv: float | None
    tcv: float | None
    tcv_relative: float | None
    nearest_mean_mismatch: float | None
    nc1_quotient_output: float | None
    nc1_output: float | None
    nc1_kept_output: int = 0
    cdnv_output: float | None
    tcv_output: float | None = None
    tcv_relative_output: float | None = None
    nearest_mean_mismatch_output: float | None = None
    stable_rank: float
    effective_rank: float
    numerical_rank: int
    stable_rank_data: float | None
    effective_rank_data: float | None
    numerical_rank_data: int | None
    stationarity: float | None = None
    implied_decay: float | None = None


class MeasurementReport(Strict):
    """What `measure` prints.

    Args:
        accuracy: Share of the calibration samples classified correctly; None without labels, and
            where tokens are predicted.
    """

    model: str
    framework: str
    seed: int
    data: DataFigures
    labels: Literal["given", "clusters"]
    accuracy: float | None = None
    versions: dict[str, str]
    layers: tuple[MeasuredLayer, ...]
    left_dense: tuple[DenseLayer, ...]
    notes: tuple[str, ...] = ()
    seconds: dict[str, float]


class LayerChange(Strict):
    """One layer that two checkpoints share.

    Args:
        name: Module name.
        weight_change: ‖W_B − W_A‖_F/‖W_A‖_F; None where W_A is zero.
        before: The layer in the first checkpoint.
        after: The layer in the second.
    """

    name: str
    weight_change: float | None
    before: MeasuredLayer
    after: MeasuredLayer


class ComparisonReport(Strict):
    """What `compare` prints.

    Args:
        before: The first checkpoint, and the data; its layers are in ``layers``.
        after: The second checkpoint, on the same samples.
        layers: Layers of the same name and shape in both, in the first one's forward order.
        agreement: Share of the calibration samples on which both predict alike; None where tokens
            are predicted.
        kl: Mean KL(first ‖ second) there, in nats.
        only_before: Layers that only the first has.
        only_after: Layers that only the second has.
        notes: What a person should know.
        seconds: Time of each stage.
    """

    before: MeasurementReport
    after: MeasurementReport
    layers: tuple[LayerChange, ...]
    agreement: float | None
    kl: float | None
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: dict[str, float]


class PlanReport(Strict):
    """What `plan` prints beside the plan it writes."""

    model: str
    method: str
    budget: tuple[str, ...]
    path: str | None
    layer_share: float
    parameter_share: float
    layers: tuple[LayerFigures, ...]
    left_dense: tuple[DenseLayer, ...]
    selection: tuple[Choice, ...] = ()
    budgets: tuple[BudgetFigures, ...] = ()
    unmet: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()


class TaskFigures(Strict):
    """One task of the lm-evaluation-harness: its metrics by name, as the harness computes them."""

    task: str
    metrics: dict[str, float]
    samples: int | None
    version: str | None


class EvaluationReport(Strict):
    """What `evaluate` prints; without data the figures of the data are None, ``tasks`` stand."""

    accuracy: float | None
    loss: float | None
    samples: int | None
    sha256: str | None
    model: str
    framework: str
    parameters: int
    bytes: int | None
    flops: int | None
    seconds: float
    perplexity: float | None = None
    byte_perplexity: float | None = None
    tokens: int | None = None
    metrics: dict[str, float] = {}
    tasks: tuple[TaskFigures, ...] = ()
    notes: tuple[str, ...] = ()


class ExportReport(Strict):
    """What `export` prints.

    Args:
        model: What was exported.
        to: The format.
        out: File or directory that was written.
        bytes: Its size.
        parameters: Parameters of the model.
        difference: Largest absolute difference between the written model's outputs and the ones in
            memory.
        tolerance: What was allowed.
        samples: Samples that both were compared on.
        seconds: Time to write and compare.
        notes: What a person should know.
    """

    model: str
    to: str
    out: str
    bytes: int
    parameters: int
    difference: float
    tolerance: float
    samples: int
    seconds: float
    notes: tuple[str, ...] = ()


class Check(Strict):
    """One thing that `verify` looked at.

    Args:
        name: ``integrity``, ``files``, ``versions``, ``ranks``, ``plan`` or ``outputs``.
        outcome: ``skipped`` where there is nothing to compare with; the detail says why.
        detail: What was found.
    """

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str


class VerificationReport(Strict):
    """What `verify` prints.

    Args:
        directory: What was verified.
        framework: Whose model it is.
        layers: Number of factorized layers.
        integrity_sha256: Hash of integrity.json, to be compared with one that is trusted.
        ok: Whether no check failed.
        checks: Every check.
        seconds: Time it took.
    """

    directory: str
    framework: str
    layers: int
    integrity_sha256: str | None
    ok: bool
    checks: tuple[Check, ...]
    seconds: float
