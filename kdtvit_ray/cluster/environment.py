"""Environment of Ray's processes, set before Ray is imported: quiet, and without what a study does not use."""

import os

RAY_ENVIRONMENT = {
    # Tune writes CSV, JSON and TensorBoard files for every trial otherwise
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C is ours: the first one lets stages end their epoch
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # nothing is resumed from Tune's own snapshots, so they may be seldom
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # a group waits for free resources as long as it takes; the status says what it waits for
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def set_environment() -> None:
    """Set what is not set yet in this process. Call it before Ray is imported."""
    os.environ.update({name: os.environ.get(name, value) for name, value in RAY_ENVIRONMENT.items()})
