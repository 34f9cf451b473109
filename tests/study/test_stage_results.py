"""What is stored of a stage: predictions and measures that say the same, as finely as float64 can."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from kdtvit_ray.data.batches import StageData
from kdtvit_ray.learning.evaluate import softmax
from kdtvit_ray.learning.outcome import StageResult
from kdtvit_ray.metrics import measure
from kdtvit_ray.results.rows import ROWS
from kdtvit_ray.study.stage_results import stage_results, trial_rows
from tests.learning import toy
from tests.study import made_stages


@pytest.fixture(scope="module")
def saturated():
    """A stage whose logits order all images rightly, with gaps that a float32 softmax makes 1."""
    data = StageData(toy.prepared(), toy.DATA)
    rows, codes = data.evaluated()
    malignant = data.table["malignant"].to_numpy()[rows]
    gap = np.where(malignant, 25.0, 20.0) + np.linspace(0, 2, len(rows))
    logits = np.zeros((len(rows), 8), np.float32)
    logits[:, 4] = gap
    predictions = {"image": rows.astype(np.int32), "split": codes, "probabilities": softmax(logits)}
    result = StageResult(toy.first(), {}, predictions, [], None, {"device": "cpu"}, {"class_weights": [1.0] * 8})
    return stage_results(toy.first(), result, data)


def test_a_confident_models_images_do_not_tie(saturated):
    about, _ = saturated
    values = [each.value for each in about.measures if (each.level, each.metric) == ("image", "auc")]
    assert len(values) == 8
    assert values == [1.0] * 8


def test_the_record_says_how_classes_were_weighed(saturated):
    assert saturated[0].weighting == {"class_weights": [1.0] * 8}


def test_stored_probabilities_give_the_measures_again(saturated):
    about, table = saturated
    frame = table.to_pandas()
    assert {str(frame[name].dtype) for name in ("probability", *(f"p{each}" for each in range(8)))} == {"float64"}
    assert frame["probability"].between(0, 1).all()
    for each in about.measures:
        if each.level == "image":
            chosen = frame[(frame["magnification"] == each.magnification) & (frame["split"] == each.split)]
            again = measure(chosen["malignant"], chosen["probability"])[each.metric]
            assert again == pytest.approx(each.value, nan_ok=True)


def test_a_trials_rows_are_its_stages_measures_by_name():
    stages = [made_stages.record(spec) for spec in made_stages.space().with_data("none").plan({})]
    expected = [
        {"study": "s", "trial": "t", "stage": number, "key": each.key, "trained": each.trained, **asdict(measure)}
        for number, each in enumerate(stages, start=1)
        for measure in each.measures
    ]
    assert len(expected) == 4 * 16
    assert trial_rows("s", "t", stages).equals(pa.Table.from_pylist(expected, schema=ROWS))
    assert trial_rows("s", "t", []).equals(ROWS.empty_table())
