"""All that a report needs to know of a study, from its folder alone. Everything below is importable from here.

    load(location) -> Study                      also while the study runs; UserError for an unknown folder or a newer format
    Study                                        .folder .name .plain (study.toml) .status .metric .trials .rows .notes
                                                 .finished .protocol .leaks .stages -> {key: stage.json}
                                                 .predictions(key) -> DataFrame | None   .trial(name) -> Series | None
    best(study) -> Best | None                   chosen on validation; Best.trial .keys .objective .chosen_from .order
                                                 .teacher .student .temperature .alpha .loss .warm_start .parameters .label
    best_by_student(study) -> list[Best]         one for each student, largest objective first
    models(study) -> list[Model]                 Model.name .label .kind ("best"|"student"|"baseline") .finals {magnification: key} .parameters
    test_predictions(study, model) -> DataFrame | None
                                                 test images of all magnifications, each by the model responsible for it

    headline(study, replicates=10_000) -> Headline
        Headline.long: DataFrame model label kind ("best"|"student"|"baseline"|"reported") level metric magnification
                       ("40X" .. "400X", "mean") value low high note
        Headline.wide(metric, level="image") -> DataFrame  index label; columns 40X 100X 200X 400X mean; attrs["low"], attrs["high"]
                       of the same shape, attrs["kind"], attrs["note"] {label: text}
    comparisons(study, replicates=10_000) -> list[Comparison]   best chain minus baseline or other student, paired over patients
        Comparison.against .metric .difference .low .high .p .p_holm .values {magnification or "mean": Interval}

    forgetting(study, trial=None) -> Transfer | None      the best chain's, or one trial's
        Transfer.order .accuracy (DataFrame R: index stage "1: 40X", columns "40X"..) .chance .average .backward .forward .forgetting
    mean_forgetting(study) -> MeanTransfer | None         .by_stage .by_magnification (DataFrames) .chains .average .backward .forward .forgetting (Interval)

    effects(study) -> list[Effect]     one for each searched setting: .setting .table (DataFrame value n mean low high best) .p .p_holm .trials
                                       settings: order, first, last, student, teacher, temperature, alpha, loss, warm_start, training.*,
                                       temperature.2 .. alpha.4 where they are searched per stage
    grid(study) -> DataFrame | None    mean objective; index temperature, columns alpha; attrs["n"] a frame of counts
    confirmations(study) -> DataFrame  kind "confirm": one line a chain: n mean sd low high (corrected resampled t)

    sharing(study) -> Sharing          .distinct .asked .shared .seconds_spent .seconds_saved .factor
    cost_by_depth(study) -> DataFrame  depth stages seconds mean
    timeline(study) -> DataFrame       group key depth trained started finished, seconds from the first start
    curves(study, keys) -> DataFrame   stage key trained epoch loss cross_entropy distillation lr agreement
    agreement(study, keys) -> DataFrame  stage key trained same_argmax kl

    roc(predictions) -> Roc                    .false_positive .true_positive .threshold .auc
    reliability(predictions, bins=10) -> Reliability   .table (low high n confidence observed) .error (ECE) .bins
    confusion(predictions, classes="binary"|"subtype") -> DataFrame   index truth, columns predicted, counts
    operating_points(predictions) -> DataFrame goal threshold sensitivity specificity
    wrong(predictions, count=20) -> DataFrame  name magnification patient subtype malignant probability confidence
        (predictions: what `test_predictions` or `Study.predictions` give; roc .. wrong use its test images)

    answer(study) -> list[str]         plain sentences
    REFERENCES                         rows of others' results, with protocol and source
    importance(study) -> {evaluator: {parameter: value}}   from importance.json, {} where there is none
"""

from kdtvit_ray.results.answer import answer, duration, metric_word
from kdtvit_ray.results.effects import Effect, confirmations, effects, grid, settings_of
from kdtvit_ray.results.effort import Sharing, agreement, cost_by_depth, curves, depths, sharing, timeline
from kdtvit_ray.results.headline import COLUMNS, REFERENCES, Comparison, Headline, Reference, comparisons, headline
from kdtvit_ray.results.images import Reliability, Roc, confusion, operating_points, reliability, roc, wrong
from kdtvit_ray.results.statistics import Interval
from kdtvit_ray.results.study import (
    Best,
    Model,
    Study,
    best,
    best_by_student,
    importance,
    load,
    models,
    test_predictions,
)
from kdtvit_ray.results.transfer import MeanTransfer, Transfer, forgetting, majority_share, mean_forgetting

__all__ = [
    "COLUMNS", "REFERENCES", "Best", "Comparison", "Effect", "Headline", "Interval", "MeanTransfer", "Model", "Reference",
    "Reliability", "Roc", "Sharing", "Study", "Transfer", "agreement", "answer", "best", "best_by_student", "comparisons",
    "confirmations", "confusion", "cost_by_depth", "curves", "depths", "duration", "effects", "forgetting", "grid",
    "headline", "importance", "load", "majority_share", "mean_forgetting", "metric_word", "models", "operating_points",
    "reliability", "roc", "settings_of", "sharing", "test_predictions", "timeline", "wrong",
]  # fmt: skip
