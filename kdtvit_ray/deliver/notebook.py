"""What one needs of the package in a notebook or script: few names, which read like the command line.

    import kdtvit_ray as kd

    kd.prepare("images", "data/mine", size=224)
    study = kd.open_study("studies/demo")
    study.trials, study.rows, study.stages, study.headline("auc"), study.figure("forgetting")
    kd.run_chain("demo", "data/mine", order="400>200>100>40", temperature=4)
    kd.predict("models/demo", "images/*.png", tta=True)

Mistakes are `kdtvit_ray.errors.UserError`, with the sentence that the command line would print.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdtvit_ray.data.prepared import Prepared
from kdtvit_ray.deliver.model_choice import BEST
from kdtvit_ray.errors import UserError, choose, unknown
from kdtvit_ray.metrics import LEVELS
from kdtvit_ray.report.style import Figure
from kdtvit_ray.results.findings import Findings
from kdtvit_ray.results.models_on_test import metrics_of
from kdtvit_ray.results.statistics import REPLICATES
from kdtvit_ray.results.study import load

OPTIONS = ("size", "aspect", "pattern", "positive", "workers", "progress")


def prepare(source: str | Path, out: str | Path, **options: Any) -> Prepared:
    """Decode a set of images once (`kdtvit-ray prepare`); `options` are those of `data.prepare.prepare`: size, aspect,
    pattern, positive (one label or several). The result has `table` (a frame), `images` (uint8 (N, H, W, 3)) and
    `fingerprint`."""
    from kdtvit_ray.data.prepare import prepare as prepare_images

    for name in options:
        choose("option of prepare", name, OPTIONS)
    workers, positive = _plain(options.get("workers", 0)), options.get("positive", ())
    if not _is_whole(workers) or workers < 0:
        raise UserError(f"{workers!r} is no number of workers; allowed: a whole number from 0 on, 0 for one a core")
    if not isinstance(positive, str) and not (_is_list(positive) and all(isinstance(each, str) for each in positive)):
        raise UserError(f"{positive!r} is no positive label; allowed: a text, or several")
    return prepare_images(Path(source), Path(out), **options)


class OpenStudy:
    """A study's folder, finished or not, as pandas frames, sentences and figures. What is computed is kept: open the
    study again to see what a running sweep has added."""

    def __init__(self, location: str | Path, replicates: int = REPLICATES) -> None:
        self.findings = Findings(load(str(location)), replicates)

    @property
    def trials(self) -> pd.DataFrame:
        """One line for each trial that has ended."""
        return self.findings.study.trials

    @property
    def rows(self) -> pd.DataFrame:
        """One line for each measured value: trial, stage, magnification, split, level, metric, value."""
        return self.findings.study.rows

    @cached_property
    def stages(self) -> pd.DataFrame:
        """One line for each trained stage: key, trained (its magnifications), parent, parameters, seconds, device."""
        return pd.DataFrame(
            [
                {
                    "key": key,
                    "trained": each.trained,
                    "parent": each.parent,
                    "parameters": each.parameters,
                    "seconds": each.seconds,
                    "device": each.device,
                }
                for key, each in self.findings.study.stages.items()
            ]
        )

    @property
    def best(self) -> Any:
        """The chosen setting (`results.models.Best`); None while no trial is complete."""
        return self.findings.best

    @property
    def answer(self) -> list[str]:
        """What the study found, in sentences, the most important one first."""
        from kdtvit_ray.results.answer import answer

        return answer(self.findings)

    def headline(self, metric: str = "auc", level: str = "image") -> pd.DataFrame:
        """The models on test: one line a model, one column a magnification, and their mean. Raises `UserError` for a
        level or metric that is none."""
        choose("level", level, LEVELS)
        choose(f"metric at the level {level}", metric, metrics_of(level))
        return self.findings.headline.wide(metric, level)

    def predictions(self, trial: str | int = BEST) -> pd.DataFrame:
        """A trial's predictions of validation and test images, after its last stage; `trial` is "best", a name or a
        number."""
        from kdtvit_ray.deliver.model_choice import choose_model

        chosen = choose_model(self.findings.study, str(trial))
        found = chosen.study.predictions(chosen.key)
        if found is None:
            raise UserError(f"The predictions of trial '{chosen.trial}' are missing or damaged")
        return found

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The report's figures by name; a notebook shows one inline."""
        from kdtvit_ray.report.build import assemble

        return {each.name: each for each in assemble(self.findings).figures()}

    def figure(self, name: str) -> Figure:
        """One of `figures`. Raises `UserError` for a name that is none, with those that there are."""
        if name not in self.figures:
            raise UserError(unknown("figure", name, self.figures))
        return self.figures[name]

    def _repr_html_(self) -> str:
        """What a notebook shows of it: the answer."""
        from kdtvit_ray.report.escaping import escape_html

        return "".join(f"<p>{escape_html(each)}</p>" for each in self.answer)


def open_study(location: str | Path) -> OpenStudy:
    """Open a study's folder or URI. Raises `UserError` where there is none."""
    return OpenStudy(location)


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return hasattr(value, "__iter__") and hasattr(value, "__len__")


def run_chain(
    space: str | Path, data: str | Path, *, trial: str | int = "", seed: int | None = None, **settings: Any
) -> pd.DataFrame:
    """Train one chain in this process (`kdtvit-ray chain`) and return what it measured: stage, trained, magnification,
    split, level, metric, value. `space` is a space file, a shipped space, or a study, whose `trial` (a name or number)
    is then run again; `settings` are order, temperature, alpha, student."""
    from kdtvit_ray.console import Terminal
    from kdtvit_ray.study.local import run_local

    allowed = ("order", "temperature", "alpha", "student")
    for name in settings:
        choose("setting of a chain", name, allowed)
    seed = _plain(seed)
    if seed is not None and not _is_whole(seed):
        raise UserError(f"{seed!r} is no seed; allowed: a whole number")
    plain = {name: _plain(value) for name, value in settings.items()}
    records = run_local(str(space), str(data), str(trial), plain, seed, Terminal(quiet=True))
    return pd.DataFrame(
        [
            {"stage": number, "trained": record.trained, **asdict(measure)}
            for number, record in enumerate(records, start=1)
            for measure in record.measures
        ]
    )


def predict(
    model: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    trial: str | int = "",
    tta: bool = False,
    threshold: str | float = "",
) -> pd.DataFrame:
    """Predict images (`kdtvit-ray predict`): one line an image. `trial` is a name or a number, `threshold` a name or a
    number from 0 to 1. `frame.attrs` has what the command prints beside: "unreadable", pairs of name and reason of what
    could not be read; "notes", sentences; "development", how many of the images the model was trained or chosen on,
    None where it does not know its own. Raises `UserError` for a model, images, labels or a threshold that cannot be
    used."""
    from kdtvit_ray.deliver.inputs import Images
    from kdtvit_ray.deliver.model import open_model
    from kdtvit_ray.deliver.predict import check_labels
    from kdtvit_ray.deliver.predict import predict as predict_images

    sources = [images] if isinstance(images, str | Path) else images
    named = _is_list(sources) and all(isinstance(each, str | Path) for each in sources)
    if not named or not len(sources):
        what = "none" if named else f"an object of the type {type(images).__name__}"
        raise UserError(f"Images are given by their paths; found {what}, allowed: a path or pattern, or several")
    given = Images([str(each) for each in sources])
    opened = open_model(str(model), str(trial))
    opened.description = opened.description.deciding_by(str(threshold))
    check_labels(given.of_tables, opened.description)
    found = predict_images(opened, given, tta=tta)
    development = opened.development()
    untrained = opened.description.untrained(found.table.get("magnification", ()))
    found.table.attrs |= {
        "unreadable": [(each.where, each.reason) for each in [*given.findings, *found.unreadable]],
        "notes": [*opened.notes, *given.notes, *filter(None, [untrained]), *found.notes],
        "development": None if development is None else sum(each in development for each in found.checksums),
    }
    return found.table
