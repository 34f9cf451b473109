"""A small study that was really trained, without Ray: its models are exported, used and looked at by the tests here."""

import pytest

from tests.conftest import MODELS

SPACE = f"""
[study]
name = "small"
trials = 2
objective_folds = 2
racing = false
lag = 1
startup = 2
seed = 7
baselines = ["joint", "per_magnification"]
[protocol]
folds = 3
[chain]
teacher = "big"
student = "big"
order = "40>100"
image_size = 16
{MODELS}
[training]
epochs = 3
batch = 24
lr = 3e-3
class_weights = "balanced-corrected"
[search]
temperature = [1, 4]
"""


@pytest.fixture(scope="session")
def study(tmp_path_factory, data):
    """Folder of a finished study, on images of 24 pixels of which its models take 16."""
    return trained(SPACE, tmp_path_factory.mktemp("trained"), data)


def trained(space, place, data):
    """Train a space, given as text, and answer the folder of its finished study."""
    from kdtvit_ray.data.batches import StageData
    from kdtvit_ray.learning.chain import run_chain
    from kdtvit_ray.paths import StudyFolder
    from kdtvit_ray.study.binding import bind, write_study
    from kdtvit_ray.study.ledger import Ledger
    from kdtvit_ray.study.space import load_space
    from kdtvit_ray.study.stage_results import stage_results

    (place / "small.toml").write_text(space)
    bound = bind(load_space(str(place / "small.toml")), str(data))
    folder = StudyFolder(str(place / "study"))
    write_study(folder, bound)
    ledger = Ledger(folder, bound.space, magnifications=bound.prepared.dataset.magnifications)
    while (ask := ledger.next()) is not None:
        for spec, result in zip(ask.stages, run_chain(ask.stages, bound.prepared), strict=True):
            record, predictions = stage_results(spec, result, StageData(bound.prepared, spec.data))
            ledger.store.save(record, result.state, predictions)
        ledger.ended(ask.trial, "complete", len(ask.stages))
    return place / "study"


@pytest.fixture(scope="session")
def model(study, tmp_path_factory):
    """The study's chosen model, exported."""
    from kdtvit_ray.deliver.export import export

    out = tmp_path_factory.mktemp("exported") / "model"
    export(str(study), out)
    return out
