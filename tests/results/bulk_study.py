"""A study of thousands of trials, written straight into parts: for measuring how long reading takes."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.metrics import LEVELS, METRICS
from kdtvit_ray.paths import PREDICTIONS, WEIGHTS, StudyFolder
from kdtvit_ray.results.rows import ROWS, TRIALS, sort_rows
from kdtvit_ray.results.stage_record import Measure, StageRecord
from tests.results.fake_study import NO_FILE, ORDERS, PARAMETERS, PREPROCESSING, START, STUDENTS, FakeStudy
from tests.study.made_stages import COST


def bulk_study(location: Path | str, *, trials: int = 10_000, seed: int = 0, stages: bool = False) -> Path:
    """A study too large to write trial by trial: records and rows in parts, as a compaction leaves them; with `stages`
    a stage.json for each distinct stage as well. The numbers are plain random ones."""
    folder = StudyFolder(str(location))
    rng = np.random.default_rng(seed)
    fake = FakeStudy(folder, seed, 16, 1, "subtype", "patient", 4, 2, False, "bulk", "auc")
    chosen = fake.chosen(rng, trials, ORDERS, STUDENTS, False, False)
    cells = [
        (magnification, split, level, metric)
        for magnification in breakhis().magnifications
        for split in ("validation", "test")
        for level in LEVELS
        for metric in (METRICS if level != "patient_rate" else METRICS[:1])
    ]
    records, specs = [], {}
    for number, params in enumerate(chosen):
        unrolled = fake.chain(params).stages()
        specs.update({spec.key: spec for spec in unrolled})
        records.append(
            {
                "trial": f"t{number:05d}",
                "number": number,
                "kind": "search",
                "state": "complete",
                "reason": "",
                "order": params["order"],
                "teacher": "tiny",
                "student": params["student"],
                "temperature": json.dumps([params["temperature"]] * 3),
                "alpha": json.dumps([params["alpha"]] * 3),
                "loss": "kd",
                "warm_start": True,
                "seed": 0,
                "fold": 1,
                "parameters": PARAMETERS[params["student"]],
                "params": json.dumps(params),
                "objective": float(rng.uniform(0.6, 0.9)),
                "stages": [spec.key for spec in unrolled],
                "cost_seconds": 400.0,
                "started": START,
                "finished": START,
                "fault": "",
            }
        )
    values = {key: rng.uniform(0.5, 1.0, len(cells)) for key in specs}
    per_part = 2_500
    for part, first in enumerate(range(0, trials, per_part), 1):
        chunk = records[first : first + per_part]
        keys = [key for record in chunk for key in record["stages"]]
        n = len(keys)
        frame = {
            "study": np.zeros(n * len(cells), np.int32),
            "trial": np.repeat([record["trial"] for record in chunk], 4 * len(cells)),
            "stage": np.tile(np.repeat(np.arange(1, 5, dtype=np.int8), len(cells)), len(chunk)),
            "key": np.repeat(keys, len(cells)),
            "trained": np.repeat([each for record in chunk for each in record["order"].split(">")], len(cells)),
            "magnification": np.tile(np.array([cell[0] for cell in cells], np.int16), n),
            **{name: np.tile([cell[i] for cell in cells], n) for i, name in enumerate(("split", "level", "metric"), 1)},
            "value": np.concatenate([values[key] for key in keys]),
        }
        columns = [
            pa.DictionaryArray.from_arrays(pa.array(frame["study"]), pa.array(["bulk"]))
            if name == "study"
            else pa.array(frame[name]).dictionary_encode()
            if pa.types.is_dictionary(kind)
            else pa.array(frame[name], kind)
            for name, kind in zip(ROWS.names, ROWS.types, strict=True)
        ]
        table = pa.Table.from_arrays(columns, schema=ROWS)
        table = sort_rows(table)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", row_group_size=65_536)
        folder.write(f"rows/part-{part:06d}.parquet", sink.getvalue())
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(chunk, schema=TRIALS), sink)
        folder.write(f"trials/part-{part:06d}.parquet", sink.getvalue())
    if stages:
        for key, spec in specs.items():
            about = StageRecord(
                key=key,
                spec=spec.to_dict(),
                measures=tuple(Measure(*cell, value) for cell, value in zip(cells, values[key].tolist(), strict=True)),
                cost={**COST, "train_seconds": 80.0, "evaluate_seconds": 2.0, "parameters": 1},
                curves=[],
                weighting={"logit_offsets": []},
                preprocessing=PREPROCESSING,
                classes={"names": [], "positive": []},
                group="group-0",
                started=START,
                finished=START + 82,
                study=fake.id,
                files=dict.fromkeys((WEIGHTS, PREDICTIONS), NO_FILE),
            )
            folder.write(folder.stage(key), json.dumps(about.to_plain()).encode())
    fake.about(trials, (), ORDERS, STUDENTS, False, False)
    fake.status("finished", trials, 0, 0, 0)
    return Path(folder.root)
