"""Tables: read columns from a CSV file, and select columns of a data frame."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minifast.errors import DataError
from minifast.utils.checks import check_count, check_once, did_you_mean

INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")


FLOAT = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class CsvTable(dict[Any, list[Any]]):
    """Columns of a CSV file by name, in order; a minimal data frame."""

    @property
    def columns(self) -> list[Any]:
        """Names of the columns."""
        return list(self)


def read_csv(file: Path, delimiter: str | None = None, header: int | str | None = "infer") -> CsvTable:
    """Return the columns of a CSV file; numeric columns become numbers, all others are texts.

    Values with leading zeros, such as 007, are texts.

    Args:
        file: the file, in UTF-8.
        delimiter: separator of the fields; by default a comma.
        header: index of the row with the column names, by default 0; None numbers the columns.

    Raises:
        DataError: if the file does not exist, is not a CSV file in UTF-8, or has no row or rows of unequal length.
    """
    header_row = 0 if header == "infer" else header if header is None else check_count("header", header, least=0)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, delimiter="," if delimiter is None else delimiter)
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError as error:
        raise DataError(f"There is no file {file}. Pass the name of your CSV file as `csv_labels`.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a CSV file in UTF-8 ({error}). Save it as one.") from error
    first = 0 if header_row is None else header_row + 1
    if len(rows) <= first:
        raise DataError(f"{file} has no row below its header. Each row must hold a file name and a label.")
    names: list[Any] = list(range(len(rows[0][1]))) if header_row is None else rows[header_row][1]
    check_once(f"{file} names the column", names, "give each column its own name")
    for line, row in rows[first:]:
        if len(row) != len(names):
            raise DataError(
                f"Each line of {file} must have {len(names)} fields, got {len(row)} in line {line}. Correct the line, "
                f"or give the right `delimiter`."
            )
    columns = zip(*(row for _, row in rows[first:]), strict=True)
    return CsvTable((name, as_numbers(column)) for name, column in zip(names, columns, strict=True))


def as_numbers(texts: Sequence[str]) -> list[Any]:
    """Return texts as numbers if all of them are numbers.

    >>> as_numbers(["1", "-2"]), as_numbers(["1", "2.5"]), as_numbers(["007", "1"])
    ([1, -2], [1.0, 2.5], ['007', '1'])
    """
    if all(map(INTEGER.fullmatch, texts)):
        return list(map(int, texts))
    return list(map(float, texts)) if all(map(FLOAT.fullmatch, texts)) else list(texts)


def column(table: Any, which: int | str, name: str) -> list[Any]:
    """Return a column by its index or name; ``name`` is the argument to name in an error.

    Raises:
        TypeError: if the table has no columns.
        DataError: if the table has no such column.
    """
    return list(table[column_name(table, which, name)])


def column_name(table: Any, which: int | str, name: str) -> Any:
    """Return the name of a column given by its index or name."""
    if not hasattr(table, "columns"):
        raise TypeError(f"`df` must be a data frame or have an attribute `columns`, got {type(table).__name__}.")
    names = list(table.columns)
    if which in names and not isinstance(which, int):
        return which
    if isinstance(which, int) and -len(names) <= which < len(names):
        return names[which]
    separator = next((mark for mark in ";\t|" if len(names) == 1 and mark in str(names[0])), None)
    seems = f"The columns seem to be separated by {separator!r}:"
    from_df = f"or give from_df what pandas.read_csv(file, sep={separator!r}) returns."
    raise DataError(
        f"`{name}` must be the name or the index of one of the columns {', '.join(map(str, names))}, got {which!r}."
        f"{did_you_mean(str(which), map(str, names))}",
        hint=f"{seems} pass delimiter={separator!r} to ImageDataBunch.from_csv, {from_df}" if separator else "",
        cli_hint=f"{seems} save the file with commas." if separator else "",
    )
