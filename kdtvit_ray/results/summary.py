"""All that a report needs to know of a study, from its folder alone. Everything below is importable from here.

    load(location) -> Study            also while the study runs; UserError: unknown folder, damaged study.toml
    Study                              .folder .name .plain (study.toml) .status .metric .trials .rows .notes .finished
                                       .protocol .leaks .stages {key: stage.json} .predictions(key) .trial(name)
    best(study) -> Best | None         chosen on validation: .trial .keys .objective .chosen_from .order .teacher
                                       .student .temperature .alpha .loss .warm_start .parameters .label
    best_by_student(study)             list[Best], the largest objective first
    models(study) -> list[Model]       .name .label .kind (best, student, baseline) .finals {magnification: key}
    test_predictions(study, model)     test images, each by the stage that is responsible for its magnification

    headline(study) -> Headline        .long (model label kind level metric magnification value low high note), .notes,
                                       .wide(metric, level): columns 40X .. 400X, mean; attrs low, high, kind, note
    REFERENCES                         others' results with protocol and source: kind "reported" in the headline
    comparisons(study)                 list[Comparison]: the best chain minus each rival, paired over patients: .against
                                       .metric .difference .low .high .p .p_holm .values {column: Interval}
                                       .trial .alike; one more for the trial like `sequential` but for distillation

    forgetting(study, trial, metric)   Transfer: .trial .metric .order .matrix (R) .constant .average .backward .forward
                                       .forgetting .notes; the best chain and the study's metric where not given
    mean_forgetting(study, metric)     MeanTransfer: .metric .chains .by_stage .by_magnification .notes, the four
                                       numbers as Intervals
    transfer_metrics(study)            the metrics in which both are shown, the study's own first
    effects(study) -> list[Effect]     .setting .table (value n mean low high best) .tried .p .p_holm .spread
    grid(study)                        mean objective, temperature by alpha; attrs n
    confirmed(study)                   chains trained again over folds and seeds: chain label level metric column runs
                                       folds mean sd low high difference difference_low difference_high p p_holm
    pooled(study) -> Pooled | None     the same chains over the test patients of all folds: .table (chain label level
                                       metric column value low high, difference as above) .folds .seeds .benign
                                       .malignant
    replicates_left(study)             (ended, planned) replicates of a confirmation that has not ended
    listed(values)                     per-stage values in words
    importance(study)                  {evaluator: {parameter: value}} from importance.json

    sharing(study) -> Sharing          .distinct .asked .shared .seconds_spent .seconds_saved .factor
    cost_by_depth(study)               depth stages device_seconds mean
    stored_outputs(study)              teachers' outputs asked for and computed, seconds saved; None where not recorded
    device_kind(study)                 CPU, GPU or device
    timeline(study)                    group key depth trained started finished
    curves(study, keys)                stage key trained epoch loss cross_entropy distillation lr agreement
    agreement(study, keys)             stage key trained same_argmax kl

    roc(predictions)                   Roc: .false_positive .true_positive .threshold .auc
    reliability(predictions, bins)     Reliability: .table (low high n confidence observed) .error .bins
    confusion(predictions, classes)    counts, "binary" or "subtype", truth by predicted
    operating_points(predictions)      goal threshold sensitivity specificity
    wrong(predictions, count)          the most confidently wrong images

    answer(study) -> list[str]         plain sentences

`replicates=` of headline, comparisons and answer is 10,000 by default; 2,000 are enough for a look.
"""

from kdtvit_ray.results.answer import answer, duration, metric_word
from kdtvit_ray.results.confirm import Pooled, confirmed, pooled, replicates_left
from kdtvit_ray.results.effects import Effect, effects, grid, settings_of
from kdtvit_ray.results.effort import (
    Sharing,
    StoredOutputs,
    agreement,
    cost_by_depth,
    curves,
    depths,
    device_kind,
    sharing,
    stored_outputs,
    timeline,
)
from kdtvit_ray.results.headline import (
    COLUMNS,
    REFERENCES,
    Comparison,
    Headline,
    Reference,
    comparisons,
    headline,
)
from kdtvit_ray.results.images import Reliability, Roc, confusion, operating_points, reliability, roc, wrong
from kdtvit_ray.results.statistics import Interval
from kdtvit_ray.results.study import (
    Best,
    Model,
    Study,
    best,
    best_by_student,
    importance,
    listed,
    load,
    models,
    test_predictions,
)
from kdtvit_ray.results.transfer import MeanTransfer, Transfer, forgetting, mean_forgetting, transfer_metrics

__all__ = [
    "COLUMNS",
    "REFERENCES",
    "Best",
    "Comparison",
    "Effect",
    "Headline",
    "Interval",
    "MeanTransfer",
    "Model",
    "Pooled",
    "Reference",
    "Reliability",
    "Roc",
    "Sharing",
    "StoredOutputs",
    "Study",
    "Transfer",
    "agreement",
    "answer",
    "best",
    "best_by_student",
    "comparisons",
    "confirmed",
    "confusion",
    "cost_by_depth",
    "curves",
    "depths",
    "device_kind",
    "duration",
    "effects",
    "forgetting",
    "grid",
    "headline",
    "importance",
    "listed",
    "load",
    "mean_forgetting",
    "metric_word",
    "models",
    "operating_points",
    "pooled",
    "reliability",
    "replicates_left",
    "roc",
    "settings_of",
    "sharing",
    "stored_outputs",
    "test_predictions",
    "timeline",
    "transfer_metrics",
    "wrong",
]
