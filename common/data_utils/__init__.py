"""Any common data format in, verl's Parquet schema out, nothing silent. See docs/data.md.

Names are imported when first used, so that a launcher's cache lookup pays for none of the heavy libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.data_utils.api import convert, detect_format, load_rows, parquet_to_json, validate
    from common.data_utils.errors import DataError, RowError
    from common.data_utils.pipeline import json_to_parquet
    from common.data_utils.prep import Prepared, prepare
    from common.data_utils.records import Options
    from common.data_utils.split import split_train_val

_HOMES = {
    "convert": "api",
    "detect_format": "api",
    "load_rows": "api",
    "parquet_to_json": "api",
    "validate": "api",
    "DataError": "errors",
    "RowError": "errors",
    "json_to_parquet": "pipeline",
    "Prepared": "prep",
    "prepare": "prep",
    "Options": "records",
    "split_train_val": "split",
}

__all__ = [
    "DataError",
    "Options",
    "Prepared",
    "RowError",
    "convert",
    "detect_format",
    "json_to_parquet",
    "load_rows",
    "parquet_to_json",
    "prepare",
    "split_train_val",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
