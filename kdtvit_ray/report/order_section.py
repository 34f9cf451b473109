"""The section on the order of magnifications: which orders did well, and what chains kept and forgot."""

import math

import pandas as pd

from kdtvit_ray.metrics import LOWER_IS_BETTER
from kdtvit_ray.report import figures
from kdtvit_ray.report.document import Items, Picker, Section
from kdtvit_ray.report.tables import Column, Estimate, Table
from kdtvit_ray.results.backward_transfer import BIASED
from kdtvit_ray.results.development import told as contrast
from kdtvit_ray.results.effects_over_patients import OverPatients
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.how_many import compared
from kdtvit_ray.results.transfer import MeanTransfer, Transfer
from kdtvit_ray.results.undefined_objectives import nothing
from kdtvit_ray.results.words import metric_name, p_value, value_name

OVER_SETTINGS = (
    "Brackets hold 95 % t intervals over settings, all judged on the same patients; they do not tell what other "
    "patients would show."
)


def order(findings: Findings) -> Section:
    section = Section("order", "Order of magnifications")
    lower = findings.study.metric in LOWER_IS_BETTER
    effect = findings.effects.get("order")
    if effect is None:
        section.missing(_why_no_orders(findings))
        if len(findings.compared):
            section.add(_only_order(findings))
    else:
        rows = [
            (str(line.value), Estimate(line.mean, line.low, line.high), int(line.n))
            for line in effect.table.sort_values("mean", ascending=lower).itertuples()
        ]
        section.add(
            figures.orders(rows, findings.objective, compared(findings)),
            effect_table(findings, "order", "Orders"),
            effect_table(findings, "first", "The magnification that the teacher starts with"),
            effect_table(findings, "last", "The magnification that is trained last"),
        )
        held_equal = ""
        if findings.study.parts:  # else all values are tested at once
            held_equal = "; a contrast between values holds the other settings equal, so it may point the other way"
        section.say(
            "Means over an adaptive search describe what was tried: a value that the sampler liked has more and better "
            "settings. They are no designed experiment"
            f"{held_equal}. A setting that was tried again counts once.",
            "note",
        )
    _forgetting(findings, section)
    return section


def _why_no_orders(findings: Findings) -> str:
    study = findings.study
    if not len(findings.compared):
        return f"{nothing(study)}, so orders cannot be compared."
    if "order" in study.plain["search"]:
        searched = study.trials.loc[study.trials["kind"] == "search", "order"]
        if searched.nunique() > 1:
            return "Only one order has settings that can be compared; trials of the others have no objective."
        return f"Only one order {'was tried' if study.finished else 'has been tried so far'}."
    return "The order was not searched in this study: every chain has the same one."


def _only_order(findings: Findings) -> Table:
    lower = findings.study.metric in LOWER_IS_BETTER
    table = Table(
        "effect-order",
        f"The order: {findings.objective} over {compared(findings)}.",
        [Column("order"), Column("settings", 0), Column("mean"), Column("best")],
    )
    for name, part in findings.compared.groupby("order")["objective"]:
        table.add(str(name), len(part), float(part.mean()), float(part.min() if lower else part.max()))
    return table


def effect_table(findings: Findings, setting: str, what: str) -> Table | None:
    """The objective by value of one searched name; None where all settings have the same value."""
    effect = findings.effects.get(setting)
    if effect is None:
        return None
    lower = findings.study.metric in LOWER_IS_BETTER
    over_patients = findings.effects_over_patients.get(setting)
    told = ""
    if findings.study.parts:
        told = f" {_over_patients(findings, over_patients)}" if over_patients else ""
    elif math.isfinite(effect.p):
        # first and last follow from the order, so they take no part in the correction
        corrected = setting not in ("first", "last")
        after = f", {p_value(effect.p_holm)} by Holm over all that was searched" if corrected else ""
        told = f" Do they differ? Kruskal-Wallis by permutation: {p_value(effect.p)}{after}."
    table = Table(
        f"effect-{setting}".replace(".", "-"),
        f"{what}: {findings.objective} by value, over {compared(findings)}. {OVER_SETTINGS}{told}",
        [Column(setting), Column("settings", 0), Column("mean"), Column("best", 3, "min" if lower else "max")],
    )
    for line in effect.table.sort_values("mean", ascending=lower).itertuples():
        table.add(value_name(line.value), int(line.n), Estimate(line.mean, line.low, line.high), float(line.best))
    return table


def _over_patients(findings: Findings, effect: OverPatients) -> str:
    """What a table of means is followed by: the clearest contrast between its values, other settings being equal."""
    clearest = effect.clearest
    if clearest is None:
        return "There are too few settings or patients to say whether they differ."
    told = contrast(clearest, findings.study.metric)
    return (
        f"Do they differ? The clearest contrast over the same settings: {told}, {p_value(clearest.p)}, "
        f"{p_value(clearest.p_holm)} by Holm over all that was searched."
    )


# -- what chains kept --------------------------------------------------------------------------------------------------


def _forgetting(findings: Findings, section: Section) -> None:
    """The forgetting matrix as a figure in the study's metric, as tables in the others too, and the four numbers."""
    metric = findings.study.metric
    best, mean = findings.transfer.get(metric), findings.mean_transfer.get(metric)
    drawn = [_matrix("best chain", best.matrix)] if best is not None else []
    if metric in findings.transfer_without_rehearsal:
        drawn.append(_matrix("the same without rehearsal", findings.transfer_without_rehearsal[metric].matrix))
    if mean is not None:
        drawn.append(_matrix(f"mean of {mean.chains} chains, by stage", mean.by_stage))
        drawn.append(_matrix("the same, by magnification", mean.by_magnification))
    if not drawn:
        section.missing(
            "No chain of several stages has finished, or its rows are lost, so there is no forgetting matrix."
        )
        return
    section.add(figures.forgetting(drawn, f"test {metric_name(metric)}"))
    matrices = [((metric_name(each.metric),), _matrix_table(each)) for each in findings.transfer.values()]
    if matrices:
        section.add(Picker("forgetting", ("Metric",), matrices))
    section.add(_transfer_table(findings))
    of_all: list[Transfer | MeanTransfer] = [*findings.transfer.values(), *findings.mean_transfer.values()]
    notes = dict.fromkeys(note for each in of_all for note in each.notes)
    if notes:
        section.add(Items(list(notes)))


def _matrix(title: str, frame: pd.DataFrame) -> figures.Matrix:
    return figures.Matrix(
        title, [str(each) for each in frame.index], [str(each) for each in frame.columns], frame.to_numpy(float)
    )


def _matrix_table(found: Transfer) -> Table:
    table = Table(
        f"forgetting-{found.metric}".replace("_", "-"),
        f"Best chain: test {metric_name(found.metric)} at each magnification after each stage, and what giving every "
        "image the same answer reaches.",
        [Column("after stage"), *(Column(str(name)) for name in found.matrix.columns)],
    )
    for stage, line in found.matrix.iterrows():
        table.add(str(stage), *(float(value) for value in line))
    table.add("constant answer", *(found.constant[name] for name in found.matrix.columns))
    return table


def _transfer_table(findings: Findings) -> Table:
    positive = findings.study.dataset.positive
    of_all: list[Transfer | MeanTransfer] = [*findings.transfer.values(), *findings.mean_transfer.values()]
    over = "a chain's own" if any(each.partial for each in of_all) else "all"
    table = Table(
        "transfer",
        f"What chains gained and kept, on test images. Average: over {over} magnifications after the last stage. "
        "Backward transfer: what earlier magnifications gained after their own stage. Forward transfer: what a "
        "magnification has before its stage, over giving every image the same answer. Forgetting: the loss from the "
        f"best value before the last stage; {BIASED}. Above 0 both transfers are gains and forgetting is a loss, also "
        "in a metric that is better when it is lower. Accuracy alone can hide forgetting: a model that calls every "
        f"image {positive} keeps the share of {positive} images. Brackets of the best chain hold a 95 % interval over "
        "test patients; those of means hold 95 % t intervals over chains, all on these same patients, and do not tell "
        "what other patients would show.",
        [
            Column("chain"),
            Column("metric"),
            Column("average"),
            Column("backward transfer"),
            Column("forward transfer"),
            Column("forgetting"),
        ],
    )
    for best in findings.transfer.values():
        held = findings.backward_over_patients.get(best.metric)
        backward = Estimate(best.backward, held.interval.low, held.interval.high) if held else Estimate(best.backward)
        table.add("best chain", metric_name(best.metric), best.average, backward, best.forward, best.forgetting)
    for twin in findings.transfer_without_rehearsal.values():
        numbers = (twin.average, twin.backward, twin.forward, twin.forgetting)
        table.add("the same without rehearsal", metric_name(twin.metric), *numbers)
    for mean in findings.mean_transfer.values():
        intervals = (mean.average, mean.backward, mean.forward, mean.forgetting)
        table.add(f"mean of {mean.chains} chains", metric_name(mean.metric), *map(Estimate.of, intervals))
    return table
