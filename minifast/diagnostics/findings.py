"""What a look at a learner found, as text and for a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what, why it matters, the way out; ``mild`` where it may be meant."""

    what: str
    why: str
    way_out: str
    mild: bool = False


class CheckResult:
    """What ``learn.check`` found; printed as text, shown as a list in a notebook.

    ``findings`` holds the findings, the grave ones first; ``looked_at`` says in a line what was seen.
    """

    def __init__(self, findings: Sequence[Finding], looked_at: str) -> None:
        self.findings = sorted(findings, key=lambda one: one.mild)
        self.looked_at = looked_at

    def _head(self) -> str:
        n = len(self.findings)
        return f"{n} finding{'s' if n > 1 else ''}." if n else "Nothing found."

    def __str__(self) -> str:
        """Say it in lines of text."""
        lines = [f"{self._head()} {self.looked_at}".rstrip()]
        for i, one in enumerate(self.findings, 1):
            mild = " (This may be meant.)" if one.mild else ""
            lines += [f"{i}. {one.what}{mild}", f"   {one.why}", f"   {one.way_out}"]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        items = "".join(
            f"<li><b>{html.escape(one.what)}</b>{' <i>This may be meant.</i>' if one.mild else ''}<br>"
            f"{html.escape(one.why)}<br>{html.escape(one.way_out)}</li>"
            for one in self.findings
        )
        return f"<p><b>{self._head()}</b> {html.escape(self.looked_at)}</p>" + (f"<ol>{items}</ol>" if items else "")
