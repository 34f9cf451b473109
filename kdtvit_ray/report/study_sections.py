"""Sections on the study itself: what it cost, its protocol and data, its failures."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import tomli_w

from kdtvit_ray.data.dataset import Dataset
from kdtvit_ray.data.sources.breakhis import SOURCE as BREAKHIS
from kdtvit_ray.report import curves
from kdtvit_ray.report.document import Code, Items, Section
from kdtvit_ray.report.tables import Column, Table
from kdtvit_ray.results.confirmation import replicates_left
from kdtvit_ray.results.effort import device_kind
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.rows import SEARCHES
from kdtvit_ray.results.sessions import DECISIVE
from kdtvit_ray.results.study import Study
from kdtvit_ray.results.undefined_objectives import undefined, why
from kdtvit_ray.results.words import duration, joined, metric_name, searched_values

PROTOCOLS = {
    "patient": "Patients are on one side only: folds are drawn by patient, stratified by class, and {parts} as well.",
    "official": "The folds are the dataset's own lists; {parts}.",
    "image": "Images were dealt to the sides at random, so images of one patient are in train and in test: every "
    "number from it leaks and is too high.",
}
GROUPS = {
    "stem": "A patient is the numeric part of the slide id, so that 22549AB and 22549CD count as one woman.",
    "id": "A patient is a slide id, so that 22549AB and 22549CD count as two.",
    "folder": "A patient is a slide folder, so that a slide filed under two subtypes counts as two.",
}
"""What a patient is in BreakHis; another dataset's patients are those of its table or folders."""
LEAK_BANNER = (
    "This study splits by image: images of one patient are in train and in test. Its numbers leak and must not be "
    "compared with patient-level splits."
)


def banners(study: Study) -> list[str]:
    found = []
    if study.leaks:
        found.append(LEAK_BANNER)
    if not study.finished:
        done = int((study.trials["kind"] == "search").sum())
        found.append(
            f"This study is partial: {done} of {study.planned} searched trials have ended.{_waiting(study)} All "
            "numbers may still change."
        )
    ended, planned = replicates_left(study)
    if planned:
        found.append(f"The confirmation is partial: {ended} of {planned} replicates have ended.")
    return found


def _waiting(study: Study) -> str:
    """What a study with inner folds still lacks before it can tell anything of test."""
    if not study.parts or (study.trials["kind"] == "refit").any():
        return ""
    return " No chain has been trained on all development patients yet, so that nothing can be told of test."


def cost(findings: Findings) -> Section:
    section = Section("cost", "Cost")
    study = findings.study
    if not study.stages:
        section.missing("No stage has finished, so nothing was spent yet.")
        return section
    sharing = findings.sharing
    section.say(
        f"The trials asked for {sharing.asked} stages, of which {sharing.distinct} are different ones: each was "
        f"computed once. That took {duration(sharing.seconds_spent)} of worker-group time and saved "
        f"{duration(sharing.seconds_saved)}, a factor of {sharing.factor:.2f}."
    )
    if study.taken_over:
        section.say(
            f"Of these stages {study.taken_over} {'were' if study.taken_over > 1 else 'was'} not trained here but "
            "taken over from other studies, through the store that they share."
        )
    stored = findings.stored_outputs
    if stored:
        section.say(
            f"Distillation asked {stored.asked:,} times for a teacher's output of an image. Of these "
            f"{stored.computed:,} were computed, in {duration(stored.seconds)}; the others were stored ones, "
            f"which saved another {duration(stored.seconds_saved)} at the same speed."
        )
    if variants := findings.variants_told:
        section.say(f"Views: {variants}.")
    if rehearsal := findings.rehearsal_told:
        section.say(f"Rehearsal: {rehearsal}.")
    depths = findings.cost_by_depth
    table = Table(
        "cost",
        "Stages and their training and evaluation time, by place in the chain.",
        [
            Column("stage", 0),
            Column("stages", 0),
            Column(f"{device_kind(study)}-seconds", 1),
            Column("mean seconds", 1),
        ],
    )
    for line in depths.itertuples():
        table.add(int(line.depth), int(line.stages), float(line.device_seconds), float(line.mean))
    section.add(curves.depth(_parts(findings)), table)
    runs = [
        curves.Run(str(line.group), int(line.depth), float(line.started), float(line.finished))
        for line in findings.timeline.itertuples()
    ]
    if runs:
        section.add(curves.timeline(runs))
    else:
        section.missing("No stage recorded when it ran, so there is no timeline.")
    return section


def _parts(findings: Findings) -> dict[int, tuple[float, float]]:
    """Mean train and evaluate seconds by place in the chain."""
    place = {line.key: int(line.depth) for line in findings.timeline.itertuples()}
    found: dict[int, list[tuple[float, float]]] = {}
    for key, about in findings.study.stages.items():
        if key in place:
            found.setdefault(place[key], []).append((about.train_seconds, about.evaluate_seconds))
    if not found:
        return {int(line.depth): (float(line.mean), 0.0) for line in findings.cost_by_depth.itertuples()}
    return {
        depth: (float(np.mean([a for a, _ in pairs])), float(np.mean([b for _, b in pairs])))
        for depth, pairs in sorted(found.items())
    }


def who_saw_what(study: Study) -> Section:
    """The dataset, the protocol, how many images and patients each side has, and what is odd about the data."""
    section = Section("data", "Data")
    plain, data = study.plain, study.plain["data"]
    settings = plain["protocol"]
    share = 100 * settings["validation"]
    own = "Patients are as the dataset names them."
    patients = GROUPS.get(settings["group"], "") if study.dataset.source == BREAKHIS else own
    parts = f"{'inner folds are cut' if study.parts else 'validation is carved'} from the training part by patient"
    section.say(_told(study.dataset))
    folds = study.dataset.folds if study.protocol == "official" else settings["folds"]
    section.say(
        f"Protocol '{study.protocol}', fold {settings['fold']} of {folds}. "
        f"{PROTOCOLS.get(study.protocol, '').format(parts=parts)} {patients} {_judging(study, share)}"
    )
    splits = data["splits"]
    columns = list(dict.fromkeys(key for each in splits.values() for key in each))
    table = Table(
        "splits", "Images and patients on each side.", [Column("split"), *(Column(each, 0) for each in columns)]
    )
    for split in sorted(splits, key=("train", "validation", "test").index):
        table.add(split, *(splits[split].get(each) for each in columns))
    section.add(table)
    notes = [str(each) for each in (*data["notes"], *data["census"])]
    if notes:
        section.say("About the data:")
        section.add(Items(notes))
    else:
        agree = f"The images agree with {study.dataset.name}'s census; " if study.dataset.source == BREAKHIS else ""
        section.say(f"{agree}{'nothing' if agree else 'Nothing'} was dropped.")
    return section


def protocol(findings: Findings) -> Section:
    study = findings.study
    plain, data = study.plain, study.plain["data"]
    section = Section("protocol", "Protocol and data", who_saw_what(study).blocks)
    if study.notes:
        section.say("About this folder:")
        section.add(Items([str(each) for each in study.notes]))
    section.add(_hardware(study, plain["versions"]))
    mixed = list(_mixed(study))
    if mixed:
        section.say("About the machines:")
        section.add(Items(mixed))
    section.say(f"Data fingerprint: {data['fingerprint']}. The command that makes this study again:")
    section.add(Code(plain["command"]))
    section.say("The resolved study file:")
    section.add(Code(tomli_w.dumps(plain)))
    return section


def _judging(study: Study, share: float) -> str:
    """Whom the search saw, and what trained on whom."""
    if not study.parts:
        return (
            f"Validation takes {share:.0f} % of the training part. The search saw validation only; test was read for "
            "this report alone."
        )
    plain = study.plain["study"]
    repeats = plain["objective_repeats"]
    again = f", {repeats} times with other cuts and training seeds" if repeats > 1 else ""
    return (
        f"The development patients, all that are not test, are cut into {plain['objective_folds']} inner folds"
        f"{again}: a setting's chains each leave one out, and their predictions of the patients left out make its "
        "objective. The chosen chains and the baselines were then trained once more on all development patients, "
        "called train below, and met test."
    )


def _told(dataset: Dataset) -> str:
    """What the images are, in one sentence."""
    magnifications = joined([f"{each}X" for each in dataset.magnifications])
    first = dataset.first_positive
    sides = [
        f"{word} ({', '.join(names)})" if names != (word,) else word
        for word, names in zip(dataset.words, (dataset.classes[:first], dataset.positives), strict=True)
    ]
    return f"The dataset is '{dataset.name}': images at {magnifications}, {sides[0]} against {sides[1]}."


def _hardware(study: Study, versions: Mapping[str, object]) -> Table:
    table = Table("machine", "Versions and hardware.", [Column("what"), Column("value")])
    for name, value in versions.items():
        table.add(name, str(value))
    table.add("dtype", study.plain["numeric"]["dtype"])
    hosts = sorted({f"{each.host} ({each.device})" for each in study.stages.values()})
    table.add("stages ran on", ", ".join(hosts[:12]) + (f" and {len(hosts) - 12} more" if len(hosts) > 12 else ""))
    workers = sorted({each.workers for each in study.stages.values()})
    if workers:
        table.add("workers per group", ", ".join(map(str, workers)))
    return table


def _mixed(study: Study) -> Iterator[str]:
    """Versions and devices of which stages had several, and nodes that were set aside."""
    for name in DECISIVE:
        used = Counter(each.versions[name] for each in study.stages.values() if name in each.versions)
        if len(used) > 1:
            yield f"Stages were trained with several versions of {name}: {_counted(used)}. Last bits may differ."
    devices = Counter(each.device_kind for each in study.stages.values())
    if len(devices) > 1:
        yield f"Stages were trained on several kinds of device: {_counted(devices)}. Last bits may differ."
    for session in study.sessions:
        yield from (f"{session.name}: the node {each}; it was set aside." for each in session.aside)
        yield from (f"{session.name}: {each}." for each in session.differences)


def _counted(used: Counter[str]) -> str:
    return joined([f"{value} ({number} stage{'s' if number > 1 else ''})" for value, number in sorted(used.items())])


def _without_objective(study: Study) -> Table | None:
    """Complete trials, of searched baselines too, that have no objective; None where all have one."""
    table = Table(
        "without-objective",
        f"Complete trials without an objective, the mean over all magnifications of {metric_name(study.metric)}.",
        [Column("trial"), Column("order"), Column("student"), Column("reason")],
    )
    for kind in SEARCHES:
        for _, each in undefined(study, kind).iterrows():
            table.add(each["trial"], each["order"], each["student"], why(study, each))
    return table if table.rows else None


def failures(findings: Findings) -> Section:
    section = Section("failures", "Failures")
    study = findings.study
    broken = study.failed
    pruned = int((study.trials["state"] == "pruned").sum())
    of_baselines = int(((study.trials["state"] == "pruned") & (study.trials["kind"] == "baseline_search")).sum())
    if pruned and study.parts:
        which = f" ({of_baselines} of them of searched baselines)" if of_baselines else ""
        section.say(
            f"Racing dropped {pruned} setting{'s' if pruned > 1 else ''}{which}: clearly behind on the inner folds "
            f"that {'they' if pruned > 1 else 'it'} had."
        )
    elif pruned:
        section.say(
            f"{pruned} trial{'s were' if pruned > 1 else ' was'} pruned: stopped early as not worth going on with."
        )
    section.add(_without_objective(study))
    if not len(broken):
        section.say("No trial failed.")
        return section
    log = study.status.log or study.folder.path(study.folder.log)
    section.say(
        f"{len(broken)} trial{'s' if len(broken) > 1 else ''} failed. What Ray and the workers printed is in {log}."
    )
    machines = int((broken["fault"] == "infrastructure").sum())
    if machines:
        section.say(
            f"{machines} of them failed for reasons of the infrastructure, not of {'their' if machines > 1 else 'its'} "
            "own: the sweep's command with --retry-failed runs them again."
        )
    table = Table(
        "failures",
        "Each failed trial, what it tried and why it ended.",
        [
            Column("trial"),
            Column("order"),
            Column("student"),
            Column("searched values"),
            Column("stages done", 0),
            Column("fault"),
            Column("reason"),
        ],
    )
    for line in broken.itertuples():
        params = json.loads(line.params)
        given = params.get("params", params)  # what is trained again notes which trial it repeats, beside its values
        values = searched_values({name: each for name, each in given.items() if name not in ("order", "student")})
        done = study.stages_done(line.trial)
        table.add(line.trial, line.order, line.student, values, done, line.fault, line.reason)
    section.add(table)
    return section
