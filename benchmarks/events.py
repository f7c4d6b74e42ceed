"""The table of callback events, generated from the table that the code uses."""

from __future__ import annotations

from benchmarks.documents import write_part
from minifast.training import EVENTS


def table() -> str:
    """Return the table in Markdown."""
    rows = ["| event | fields first known there | what a callback may return |", "|---|---|---|"]
    for name, event in EVENTS.items():
        cells = (
            f"`{name}`",
            *(" ".join(f"`{field}`" for field in part) for part in (event.first_known, event.may_return)),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Write the table into the documentation."""
    write_part("events", table())
    print("Wrote the table of events.")
