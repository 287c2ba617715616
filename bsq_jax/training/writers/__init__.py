"""Where a run's metrics and pictures go: ``metrics.jsonl``, TensorBoard, Weights & Biases."""

from bsq_jax.training.writers.record import Record, open_record
from bsq_jax.training.writers.wandb_run import check_wandb
from bsq_jax.training.writers.writer import MetricWriter

__all__ = ["MetricWriter", "Record", "check_wandb", "open_record"]
