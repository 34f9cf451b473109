"""How results are worded: one name for each metric, wherever a reader meets it."""

METRIC_NAMES = {"auc": "AUC", "f1": "F1", "balanced_accuracy": "balanced accuracy", "brier": "Brier score"}


def metric_name(metric: str) -> str:
    """A metric's name in running text, such as `balanced accuracy`."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))
