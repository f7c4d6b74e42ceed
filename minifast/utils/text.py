"""Tables and their cells as text, and where text goes."""

from __future__ import annotations

import contextlib
import html
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from minifast.errors import MinifastError


def text_table(rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """Write rows, the header first, in columns two spaces apart; those from number ``right`` on end at the right.

    >>> print(text_table([["class", "n"], ["three", "7"]], right=1))
    class  n
    three  7
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first_right = len(widths) if right is None else right
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if i >= first_right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def html_table(rows: Sequence[Sequence[str]], right: int | None = None, note: str = "") -> str:
    """Return rows, the header first, as an HTML table with a note; columns from number ``right`` on end at the right.

    >>> html_table([["class", "n"], ["<3>", "7"]], right=1, note="2 rows")[-103:]
    "<td style='text-align:left'>&lt;3&gt;</td><td style='text-align:right'>7</td></tr></table><p>2 rows</p>"
    """
    first_right = max(map(len, rows), default=0) if right is None else right

    def line(row: Sequence[str], tag: str) -> str:
        sides = ["right" if i >= first_right else "left" for i in range(len(row))]
        cells = [
            f"<{tag} style='text-align:{side}'>{html.escape(cell)}</{tag}>"
            for side, cell in zip(sides, row, strict=True)
        ]
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(line(row, "td" if i else "th") for i, row in enumerate(rows))
    table = f"<table>{body}</table>" if rows else ""
    return table + (f"<p>{html.escape(note)}</p>" if note else "")


def real_name(name: str) -> str:
    r"""Return the name of a file as UTF-8 has it; a locale without its characters gives Python surrogates instead.

    >>> real_name("caf\udcc3\udca9.png"), real_name("caf\udce9.png")
    ('café.png', 'caf\udce9.png')
    """
    try:
        return os.fsencode(name).decode()
    except UnicodeError:  # the bytes of the name are not UTF-8
        return name


class Described:
    """Show facts as a table: ``print`` as text, a notebook as HTML.

    A subclass returns names and values in ``_description``.
    """

    def _description(self) -> list[tuple[str, str]]:
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{type(self).__name__}\n{text_table(self._description())}"

    def _repr_html_(self) -> str:
        return html_table([(type(self).__name__, ""), *self._description()])


def shape_text(shape: Iterable[int]) -> str:
    """Return a shape as text; that of a single number is ``()``.

    >>> shape_text((3, 28, 28)), shape_text(())
    ('3 x 28 x 28', '()')
    """
    return " x ".join(map(str, shape)) or "()"


def cell(value: Any) -> str:
    """Return a value as the table shows it.

    >>> cell(3), cell(0.5), cell(None), cell([0.5, 1.0])
    ('3', '0.500000', '#na#', '[0.500000, 1.000000]')
    """
    if isinstance(value, list):
        return f"[{', '.join(map(cell, value))}]"
    return "#na#" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    """Return a duration in seconds as ``mm:ss``, or as ``h:mm:ss`` from one hour on.

    >>> clock(65), clock(3661)
    ('01:05', '1:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal; None and objects without ``isatty`` are not."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # a closed file raises a ValueError
        return False


_muted = False


def mute() -> None:
    """Write no more text to ``sys.stdout``, because another process of the same run does."""
    global _muted
    _muted = True


def is_muted() -> bool:
    """Return whether another process writes the text."""
    return _muted


def can_write(text: str, stream: Any = None) -> bool:
    """Return whether the encoding of a stream, by default ``sys.stdout``, has all characters of ``text``.

    >>> can_write("plain")
    True
    """
    stream = sys.stdout if stream is None else stream
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def write_text(text: object = "", end: str = "\n", stream: Any = None) -> None:
    """Print ``text``, by default to ``sys.stdout``, whatever the stream can take.

    What its encoding lacks is written as an escape such as ``\\xe9``. A closed stream raises no error.
    """
    if stream is None and _muted:
        return
    stream = sys.stdout if stream is None else stream
    try:
        _write(text, end, stream)
    except (OSError, ValueError) as error:
        report_closed(stream, error)


def write_result(text: object) -> None:
    """Print the result of a command, as ``write_text`` does, to ``sys.stdout``.

    Raises:
        MinifastError: the stream cannot take it, so the result would be lost.
    """
    if _muted:
        return
    try:
        _write(text, "\n", sys.stdout)
    except (OSError, ValueError) as error:
        raise MinifastError(
            f"The output cannot be written ({_reason(error)}), and it is the result of this command. Run it again with "
            f"another output."
        ) from error


def _write(text: object, end: str, stream: Any) -> None:
    flush = hasattr(stream, "flush")
    try:
        print(text, end=end, file=stream, flush=flush)
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        print(str(text).encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=flush)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).rstrip(".")


_closed: list[Any] = []  # the stream that was reported last


def report_closed(stream: Any, error: Exception) -> None:
    """Print once on stderr that ``stream`` takes no more text."""
    if any(stream is other for other in _closed):
        return
    _closed[:] = [stream]
    with contextlib.suppress(OSError, ValueError):
        print(
            f"minifast: the output cannot be written ({_reason(error)}); the work continues without it.",
            file=sys.stderr,
        )
