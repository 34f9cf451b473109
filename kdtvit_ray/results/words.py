"""How results are worded, once for the terminal, the report and the answer: metrics, levels, baselines, durations,
p-values, lists. The command line imports this module, so it imports nothing heavy."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdtvit_ray.errors import counted as counted
from kdtvit_ray.recipe import WITHOUT_REHEARSAL

METRIC_NAMES = {
    "auc": "AUC",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "auprc": "AUPRC",
    "mcc": "MCC",
}
LEVEL_NAMES = {"image": "image", "patient_rate": "patient rate", "patient_vote": "patient vote"}
BASELINE_NAMES = {
    "per_magnification": "one model per magnification",
    "joint": "joint training on all magnifications",
    "sequential": "sequential fine-tuning without distillation",
    "from_scratch_kd": "distillation without warm start",
}
CHAIN_NAMES = {**BASELINE_NAMES, WITHOUT_REHEARSAL: "the chosen chain without rehearsal"}
"""Also of the baseline that is no chain of the space's own, but made from the chosen one."""


def metric_name(metric: str) -> str:
    """A metric's name in running text, such as `balanced accuracy`."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def baseline_name(chain: str) -> str:
    """A baseline's name in running text, with the trial's where that is a setting of a searched one; any other chain is
    called by its trial's name."""
    name, _, rest = chain.partition("-")
    if name in BASELINE_NAMES and rest[:1] == "t" and rest[1:].isdigit():
        return f"{BASELINE_NAMES[name]} ({chain})"
    return CHAIN_NAMES.get(chain, chain)


def baseline_label(chain: str) -> str:
    """A baseline's name at the start of a table's line."""
    name = baseline_name(chain)
    return chain if name == chain else name[0].upper() + name[1:]


def duration(seconds: float) -> str:
    """`45 s`, `1 min 15 s`, `1 h 02 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def p_value(p: float) -> str:
    """`p = 0.534` or `p < 0.001`."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def points(share: float, metric: str = "") -> str:
    """A share of one in points of a hundred: one decimal, two where one decimal would show a small number as none. A
    difference in log loss, which is no share of anything, as it is, in nats."""
    if metric == "log_loss":
        return f"{round(share, 3) + 0.0:.3f}"
    digits = 1 if share == 0 or abs(share) >= 0.0005 else 2
    return f"{round(100 * share, digits) + 0.0:.{digits}f}"  # never -0.0


def amount(share: float, metric: str) -> str:
    """`1.2 points`, or `0.051 nats` of log loss."""
    return f"{points(share, metric)} {'nats' if metric == 'log_loss' else 'points'}"


def listed(values: Sequence[float], between: str = ", ") -> str:
    """The values that a chain's stages have: one number where all are the same, nothing where there are none."""
    found = [f"{each:g}" for each in values]
    return found[0] if len(set(found)) == 1 else between.join(found)


def searched_training(params: Mapping[str, Any]) -> str:
    """The training settings among what a trial was given: `training.lr 0.001, training.stain hed`; "" where none was
    searched."""
    return searched_values({name: each for name, each in params.items() if name.startswith("training.")})


def searched_values(params: Mapping[str, Any]) -> str:
    """What a trial was given, by name: `alpha 0.5, training.lr 0.001`; "" where nothing was searched."""
    return ", ".join(f"{name} {value_name(each)}" for name, each in params.items())


def value_name(value: Any) -> str:
    """A value of a searched name: a number without needless digits, `0.1 to 0.5` for a span of them, else its words."""
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value.left:g} to {value.right:g}" if hasattr(value, "left") else str(value)


def tried(settings: int) -> str:
    """`12 different settings`."""
    return "the only setting tried" if settings == 1 else f"{settings} different settings"


def joined(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
