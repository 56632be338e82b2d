"""An Excel file written row by row: text as text, numbers as numbers, nothing as a formula."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data_utils.atomic import temp_beside
from common.evaluation.cells import SHEET_ROWS, cell_text, text_of
from common.launcher.errors import UserError


class Sheet:
    """One sheet; rows go in from top to bottom, and on to a further sheet at Excel's last row."""

    def __init__(self, book: Book, name: str, header: Sequence[str], widths: Sequence[int]) -> None:
        self.book, self.name, self.header, self.widths = book, name, list(header), list(widths)
        self.row = self.number = 0
        self._new()

    def _new(self) -> None:
        self.number += 1
        name = self.name if self.number == 1 else f"{self.name} {self.number}"
        self.sheet = self.book.xlsx.add_worksheet(name[:31])
        self.row = 0
        for column, width in enumerate(self.widths):
            self.sheet.set_column(column, column, width)
        if self.header:
            self.sheet.freeze_panes(1, 0)
            for column, title in enumerate(self.header):
                self.sheet.write_string(0, column, cell_text(title)[0], self.book.bold)
            self.row = 1

    def add(self, values: Sequence[Any], style: Any = None, where: str = "") -> bool:
        """Write a row; returns whether a text in it was cut."""
        if self.row >= SHEET_ROWS:
            self.finish()
            self._new()
        cut = False
        for column, value in enumerate(values):
            cut |= self._cell(column, value, style, where)
        self.row += 1
        return cut

    def _cell(self, column: int, value: Any, style: Any, where: str) -> bool:
        if value is None or value == "":
            if style is not None:
                self.sheet.write_blank(self.row, column, None, style)
            return False
        if isinstance(value, bool):
            self.sheet.write_boolean(self.row, column, value, style)
            return False
        if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**53:
            self.sheet.write_number(self.row, column, value, style)
            return False
        text, cut = cell_text(text_of(value), where)
        self.sheet.write_string(self.row, column, text, style)
        return cut

    def finish(self, colour: int | None = None) -> None:
        """Filters over the table; *colour* names a column of scores to shade from red to green."""
        if self.header and self.row > 1:
            self.sheet.autofilter(0, 0, self.row - 1, len(self.header) - 1)
            if colour is not None:
                self.sheet.conditional_format(1, colour, self.row - 1, colour, {"type": "3_color_scale"})


class Book:
    """The file; it appears under its name when it is complete.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        import xlsxwriter

        self.path = path
        # The folder holds the parts of a sheet while it grows; beside the file, where there is room for it.
        self._parts = temp_beside(path.with_name(path.name + ".parts"))
        self._temporary = temp_beside(path)
        try:
            self._parts.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
        self.xlsx = xlsxwriter.Workbook(
            str(self._temporary),
            {
                "constant_memory": True,
                "tmpdir": str(self._parts),
                "strings_to_formulas": False,
                "strings_to_urls": False,
                "strings_to_numbers": False,
            },
        )
        self.bold = self.xlsx.add_format({"bold": True, "bg_color": "#DDE6F0", "bottom": 1})
        self.title = self.xlsx.add_format({"bold": True, "font_size": 13})
        self.red = self.xlsx.add_format({"font_color": "#9C0006", "bg_color": "#FFC7CE"})
        self.share = self.xlsx.add_format({"num_format": "0.0000"})

    def sheet(self, name: str, header: Sequence[str] = (), widths: Sequence[int] = ()) -> Sheet:
        """Add a sheet at the end."""
        return Sheet(self, name, header, widths)

    def chart(
        self, sheet: Sheet, kind: str, columns: tuple[int, Sequence[int]], title: str, place: str
    ) -> None:
        """A chart of a sheet's own columns: (categories, values), from its second row on.

        Args:
            kind: `column` or `line`.
            columns: number of the column with the categories, and of those with the values.
            place: cell of its upper left corner.
        """
        chart = self.xlsx.add_chart({"type": kind})
        name, last = sheet.sheet.get_name(), sheet.row - 1
        for column in columns[1]:
            series: dict[str, Any] = {
                "name": [name, 0, column],
                "categories": [name, 1, columns[0], last, columns[0]],
                "values": [name, 1, column, last, column],
            }
            chart.add_series({**series, "marker": {"type": "circle"}} if kind == "line" else series)
        chart.set_title({"name": title})
        if len(columns[1]) == 1:
            chart.set_legend({"none": True})
        sheet.sheet.insert_chart(place, chart)

    def close(self) -> None:
        """Finish and put the file in its place.

        Raises:
            UserError: no room, no permission, or the file is open in Excel on Windows.
        """
        from xlsxwriter.exceptions import FileCreateError

        try:
            self.xlsx.close()
            self._temporary.replace(self.path)
        except (OSError, FileCreateError) as error:
            raise UserError(
                f"{self.path} cannot be written: {getattr(error, 'strerror', None) or error}"
            ) from None
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what is unfinished."""
        self._temporary.unlink(missing_ok=True)
        shutil.rmtree(self._parts, ignore_errors=True)
