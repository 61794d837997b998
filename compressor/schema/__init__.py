"""The JSON a run prints and saves: one documented schema, with a version; a file each part."""

from compressor.schema.budgets import BudgetFigures, Pace, PromisedLoss, Trial
from compressor.schema.comparison import ComparisonReport, LayerChange
from compressor.schema.data import DataFigures, SplitFigures
from compressor.schema.evaluation import EvaluationReport, TaskFigures
from compressor.schema.export import ExportReport
from compressor.schema.frontier import FrontierPoint, PredictedFrontier
from compressor.schema.inspection import InspectedLayer, Inspection
from compressor.schema.layers import ALREADY_FACTORIZED, DenseLayer, LayerFigures, Spectrum
from compressor.schema.losses import PairedLoss
from compressor.schema.measurement import MeasuredLayer, MeasurementReport
from compressor.schema.plan import PlanReport
from compressor.schema.quality import ClassFigures, ModelFigures, QualityFigures
from compressor.schema.recovery import RecoveryFigures
from compressor.schema.report import REPORT_FILE, REPORT_VERSION, Report
from compressor.schema.selection import Choice
from compressor.schema.speed import LatencyFigures, LayerTime, SpeedFigures
from compressor.schema.strict import Strict
from compressor.schema.verification import Check, VerificationReport

__all__ = [
    "ALREADY_FACTORIZED",
    "REPORT_FILE",
    "REPORT_VERSION",
    "BudgetFigures",
    "Check",
    "Choice",
    "ClassFigures",
    "ComparisonReport",
    "DataFigures",
    "DenseLayer",
    "EvaluationReport",
    "ExportReport",
    "FrontierPoint",
    "InspectedLayer",
    "Inspection",
    "LatencyFigures",
    "LayerChange",
    "LayerFigures",
    "LayerTime",
    "MeasuredLayer",
    "MeasurementReport",
    "ModelFigures",
    "Pace",
    "PairedLoss",
    "PlanReport",
    "PredictedFrontier",
    "PromisedLoss",
    "QualityFigures",
    "RecoveryFigures",
    "Report",
    "Spectrum",
    "SpeedFigures",
    "SplitFigures",
    "Strict",
    "TaskFigures",
    "Trial",
    "VerificationReport",
]
