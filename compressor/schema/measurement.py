"""What `measure` prints."""

from __future__ import annotations

from typing import Literal

from compressor.schema.data import DataFigures
from compressor.schema.layers import DenseLayer
from compressor.schema.strict import Strict


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
