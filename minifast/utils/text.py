"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


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
