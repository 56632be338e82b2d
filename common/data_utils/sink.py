"""A Parquet file written batch by batch: its schema may widen on the way; it appears whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.data_utils.atomic import clear_stale, temp_beside
from common.data_utils.table import common_schema, conform_batch

# Texts differ from row to row: dictionaries and minima of them cost time and serve nobody.
_REPEATING = ("role", "style", "split", "data_source", "ability", "agent_name", "tools", "type")


class ParquetSink:
    """Context manager around one output file.

    Batches of one schema stream into one temporary file. When a later batch needs a wider schema (an
    optional field first seen there), a further part is opened, and `commit` joins the parts.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_stale(path.parent)
        self.path, self.rows = path, 0
        self.schema: pa.Schema | None = None
        self._parts: list[Path] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> ParquetSink:
        return self

    def __exit__(self, *problem: Any) -> None:
        self._close()
        for part in self._parts:
            part.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, schema: pa.Schema) -> None:
        self._close()
        self.schema = schema
        part = temp_beside(self.path)
        self._parts.append(part)
        columns = [leaf for leaf in _leaves(schema) if leaf.split(".")[-1] in _REPEATING]
        self._writer = pq.ParquetWriter(
            part, schema, use_dictionary=columns or False, write_statistics=columns or False
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Add a batch."""
        if self.schema is None:
            self._open(batch.schema)
        assert self.schema is not None
        if not batch.schema.equals(self.schema):
            wider = common_schema(self.schema, batch.schema)
            if not wider.equals(self.schema):
                self._open(wider)
            batch = conform_batch(batch, wider)
        assert self._writer is not None
        self._writer.write_batch(batch, row_group_size=batch.num_rows or 1)
        self.rows += batch.num_rows

    def commit(self) -> None:
        """Put the file in its place.

        Raises:
            ValueError: nothing was written.
        """
        if self.schema is None:
            raise ValueError("nothing was written")
        self._close()
        if len(self._parts) > 1:
            parts = list(self._parts)
            self._open(self.schema)
            assert self._writer is not None
            for part in parts:
                with pq.ParquetFile(part) as file:
                    for group in range(file.num_row_groups):
                        for batch in file.read_row_group(group).to_batches():
                            self._writer.write_batch(conform_batch(batch, self.schema))
            self._close()
        self._parts[-1].replace(self.path)


def _leaves(schema: pa.Schema) -> list[str]:
    found: list[str] = []

    def walk(kind: pa.DataType, path: str) -> None:
        if pa.types.is_struct(kind):
            for field in kind:
                walk(field.type, f"{path}.{field.name}")
        elif pa.types.is_list(kind):
            walk(kind.value_type, f"{path}.list.element")
        else:
            found.append(path)

    for field in schema:
        walk(field.type, field.name)
    return found
