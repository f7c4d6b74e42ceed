"""Tables: columns read from a CSV file, or picked from whatever has columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minifast.errors import DataError
from minifast.utils.checks import check_count, check_once, did_you_mean

WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")


REAL = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Table(dict[Any, list[Any]]):
    """Columns by name, in their order: what a data frame is, for a file that is read without one."""

    @property
    def columns(self) -> list[Any]:
        """The names."""
        return list(self)


def read_csv(file: Path, delimiter: str | None = None, header: int | str | None = "infer") -> Table:
    """Read a CSV file; a column of whole numbers or of real ones holds numbers, any other texts.

    Numbers that begin with a 0 that is not needed, such as 007, are texts.

    Args:
        file: the file, in UTF-8.
        delimiter: what stands between two fields; by default a comma.
        header: the row of the columns' names, counted from 0, or None for columns that are numbered; by default the
            first.

    Raises:
        DataError: there is no such file, it is no text, has no row, or a row has not the first one's fields.
    """
    place = 0 if header == "infer" else header if header is None else check_count("header", header, least=0)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, delimiter="," if delimiter is None else delimiter)
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError as error:
        raise DataError(f"There is no file {file}; name it with csv_labels.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is no CSV file in UTF-8 ({error}); save it as one.") from error
    first = 0 if place is None else place + 1
    if len(rows) <= first:
        raise DataError(f"{file} has no row below its header; write a file and its label in each.")
    names: list[Any] = list(range(len(rows[0][1]))) if place is None else rows[place][1]
    check_once(f"{file} names the column", names, "give each a name of its own")
    for line, row in rows[first:]:
        if len(row) != len(names):
            raise DataError(
                f"Line {line} of {file} has {len(row)} fields, and there are {len(names)} columns; mend the line, or "
                f"give the right delimiter."
            )
    columns = zip(*(row for _, row in rows[first:]), strict=True)
    return Table((name, as_numbers(column)) for name, column in zip(names, columns, strict=True))


def as_numbers(texts: Sequence[str]) -> list[Any]:
    """Return texts as numbers where all of them are.

    >>> as_numbers(["1", "-2"]), as_numbers(["1", "2.5"]), as_numbers(["007", "1"])
    ([1, -2], [1.0, 2.5], ['007', '1'])
    """
    if all(map(WHOLE.fullmatch, texts)):
        return list(map(int, texts))
    return list(map(float, texts)) if all(map(REAL.fullmatch, texts)) else list(texts)


def column(table: Any, which: int | str, name: str) -> list[Any]:
    """Return a column by its place or its name; ``name`` is the argument that says which.

    Raises:
        TypeError, DataError: the table has no columns, or not this one.
    """
    return list(table[column_name(table, which, name)])


def column_name(table: Any, which: int | str, name: str) -> Any:
    """Return the name of a column that is given by its place or its name."""
    if not hasattr(table, "columns"):
        raise TypeError(f"df is a {type(table).__name__}; it must have columns, as a data frame has.")
    names = list(table.columns)
    if which in names and not isinstance(which, int):
        return which
    if isinstance(which, int) and -len(names) <= which < len(names):
        return names[which]
    raise DataError(
        f"{name} is {which!r}, and the table has the columns {', '.join(map(str, names))}."
        f"{did_you_mean(str(which), map(str, names))} Give a name of these, or a place counted from 0."
    )
