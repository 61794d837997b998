"""Where labelled batches come from: sources, splits, labels and batches."""

from compressor.data.labelled import DATA_SOURCES, LabelledData, Split
from compressor.data.load import CALIBRATION, SPLITS, load_data

__all__ = ["CALIBRATION", "DATA_SOURCES", "SPLITS", "LabelledData", "Split", "load_data"]
