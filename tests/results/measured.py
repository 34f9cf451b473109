"""Measured values as a study's folder holds them."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyarrow as pa

from kdtvit_ray.results.rows import ROWS


def table_of(measures: Iterable[dict[str, Any]] | pd.DataFrame) -> pa.Table:
    """Rows as a table of the schema `ROWS`, from dicts with its fields or a DataFrame with its columns."""
    if isinstance(measures, pd.DataFrame):
        measures = measures[list(ROWS.names)].to_dict("records")
    return pa.Table.from_pylist(list(measures), schema=ROWS)
