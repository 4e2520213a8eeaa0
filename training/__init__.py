"""Training and evaluation: packed batches, losses, the trainer, ranking metrics."""

from longrec.training.evaluation import Answers, answer, evaluate, rank_targets
from longrec.training.metrics import Metrics, ranking_metrics
from longrec.training.packing import Batch, pack
from longrec.training.reporting import Observer, ProgressBar, TensorBoard, plot_history
from longrec.training.trainer import Trained, train

__all__ = [
    "Answers",
    "Batch",
    "Metrics",
    "Observer",
    "ProgressBar",
    "TensorBoard",
    "Trained",
    "answer",
    "evaluate",
    "pack",
    "plot_history",
    "rank_targets",
    "ranking_metrics",
    "train",
]
