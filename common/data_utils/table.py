"""Training rows as Arrow batches, and batches of differing types brought to one schema."""

from __future__ import annotations

import datetime
import json
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.data_utils.records import Row

TURN_COLUMNS = ("messages", "prompt", "chosen", "rejected")
_CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
    ]
)
_TURN_FIELDS = {
    "role": pa.string(),
    "content": pa.string(),
    "name": pa.string(),
    "tool_call_id": pa.string(),
    "reasoning_content": pa.string(),
    "tool_calls": pa.list_(_CALL),
}
_TEXT_COLUMNS = ("data_source", "ability", "agent_name", "tools")


def as_text(value: Any) -> str | None:
    """How a value is stored in a column that must be text: text as it is, everything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # whether a whole number met a fraction before it met a text must not show
    return json.dumps(value, ensure_ascii=False, default=str)


def _column(values: list[Any]) -> pa.Array:
    """An array of the narrowest type that holds all values; text where they have none in common."""
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.array([as_text(value) for value in values], pa.string())
    if _storable(array.type):
        return array
    return pa.array([as_text(value) for value in values], pa.string())


def _storable(kind: pa.DataType) -> bool:
    """Parquet has no object without fields."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_storable(field.type) for field in kind)
    if pa.types.is_list(kind):
        return _storable(kind.value_type)
    return True


def _turns(column: list[list[dict[str, Any]]]) -> pa.Array:
    """Lists of messages; the optional fields stand only where a message of the batch has them."""
    flat = list(chain.from_iterable(column))
    offsets = pa.array(list(accumulate(map(len, column), initial=0)), pa.int32())
    names = ["role", "content"]
    if any(len(turn) > 2 for turn in flat):
        used = set(chain.from_iterable(flat))
        names = [name for name in _TURN_FIELDS if name in used]
    arrays = [pa.array([turn.get(name) for turn in flat], _TURN_FIELDS[name]) for name in names]
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, names=names))


def _object(rows: list[Row]) -> pa.Array:
    """An object column with the union of the rows' keys."""
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    return pa.StructArray.from_arrays(
        [_column([row.get(name) for row in rows]) for name in names], names=names
    )


def build(rows: list[Row]) -> pa.RecordBatch:
    """Training rows as one batch.

    Raises:
        UnicodeEncodeError, pa.ArrowException: a row that Arrow cannot hold (see `pipeline.batch_of`).
    """
    names = (
        list(rows[0])
        if len({tuple(row) for row in rows}) == 1
        else list(dict.fromkeys(chain.from_iterable(rows)))
    )
    arrays = []
    for name in names:
        values = [row.get(name) for row in rows]
        if name in TURN_COLUMNS:
            arrays.append(_turns(values))  # type: ignore[arg-type]
        elif name in _TEXT_COLUMNS:
            arrays.append(pa.array(values, pa.string()))
        elif name in ("reward_model", "extra_info"):
            arrays.append(_object(values))  # type: ignore[arg-type]
        else:
            arrays.append(_column(values))
    return pa.RecordBatch.from_arrays(arrays, names=names)


def has_tools(schema: pa.Schema) -> bool:
    """Whether rows carry tool schemas or tool calls, which need `verl_datasets.ToolsSFTDataset`."""
    if "tools" in schema.names:
        return True
    turns = [field.type.value_type for field in schema if field.name in TURN_COLUMNS]
    return any(kind.get_field_index("tool_calls") >= 0 for kind in turns)


def with_index(batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
    """Put `extra_info.index` (row number of the output, from `start`) where the source brought none."""
    position = batch.schema.get_field_index("extra_info")
    if position < 0:
        return batch
    extra = batch.column(position)
    index = pa.array(range(start, start + batch.num_rows), pa.int64())
    names = [field.name for field in extra.type]
    children = extra.flatten()
    if "index" in names:
        own = children[names.index("index")]
        if own.null_count:
            kind = own.type if pa.types.is_string(own.type) else pa.int64()
            children[names.index("index")] = pc.coalesce(own.cast(kind), index.cast(kind))
    else:
        names, children = ["index", *names], [index, *children]
    return batch.set_column(position, "extra_info", pa.StructArray.from_arrays(children, names=names))


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both: fields united, integers widened to floats, text where nothing else fits."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = (
                common_type(fields[field.name], field.type) if field.name in fields else field.type
            )
        return pa.struct(list(fields.items()))
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(common_type(one.value_type, other.value_type))
    numbers = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (one, other)]
    if all(numbers):
        return pa.float64()
    return pa.string()


def common_schema(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    """The schema that holds rows of both."""
    merged = common_type(pa.struct(list(one)), pa.struct(list(other)))
    return pa.schema(list(merged))


def conform(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The same values under a type that `common_type` made."""
    if array.type.equals(kind):
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    if pa.types.is_struct(kind) and pa.types.is_struct(array.type):
        own = dict(zip([field.name for field in array.type], array.flatten(), strict=True))
        children = [
            conform(own[field.name], field.type) if field.name in own else pa.nulls(len(array), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    if pa.types.is_list(kind) and pa.types.is_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_pylist()
        offsets = pa.array(list(accumulate(lengths, initial=0)), pa.int32())
        values = conform(array.flatten(), kind.value_type)
        return pa.ListArray.from_arrays(offsets, values, type=kind, mask=array.is_null())
    if pa.types.is_string(kind):
        return pa.array([as_text(value) for value in array.to_pylist()], kind)
    return array.cast(kind)


def conform_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch under a wider schema; columns it lacks are null."""
    if batch.schema.equals(schema):
        return batch
    present = set(batch.schema.names)
    arrays = [
        conform(batch.column(field.name), field.type)
        if field.name in present
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
