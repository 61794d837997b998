"""What predictions of classes are scored by, a metric a file; importing this registers them."""

from compressor.evaluation.metrics import balanced, calibration, f1, log_loss, top_k

__all__ = ["balanced", "calibration", "f1", "log_loss", "top_k"]
