"""The result of ``Learner.check``, printed as text and shown as a list in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from minifast.utils.aliases import deprecated_attribute


@dataclass(frozen=True)
class Finding:
    """One problem of a learner.

    Args:
        what: the problem.
        why: its consequence.
        remedy: what to do about it.
        mild: whether it may be intended, such as frozen parameters.
    """

    what: str
    why: str
    remedy: str
    mild: bool = False

    way_out = deprecated_attribute("way_out", "remedy")


class CheckResult:
    """The problems that ``learn.check`` found.

    Args:
        findings: the problems. They are sorted: those that may be intended come last.
        observations: a line that describes the initial loss and the test training.
    """

    looked_at = deprecated_attribute("looked_at", "observations")

    def __init__(self, findings: Sequence[Finding], observations: str) -> None:
        self.findings = sorted(findings, key=lambda finding: finding.mild)
        self.observations = observations

    def _head(self) -> str:
        n = len(self.findings)
        return f"{n} problem{'s' if n > 1 else ''} found." if n else "No problem found."

    def __str__(self) -> str:
        """Return the result as lines of text."""
        lines = [f"{self._head()} {self.observations}".rstrip()]
        for i, finding in enumerate(self.findings, 1):
            mild = " (This may be intended.)" if finding.mild else ""
            lines += [f"{i}. {finding.what}{mild}", f"   {finding.why}", f"   {finding.remedy}"]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<li><b>{html.escape(finding.what)}</b>{' <i>This may be intended.</i>' if finding.mild else ''}<br>"
            f"{html.escape(finding.why)}<br>{html.escape(finding.remedy)}</li>"
            for finding in self.findings
        )
        return f"<p><b>{self._head()}</b> {html.escape(self.observations)}</p>" + (f"<ol>{rows}</ol>" if rows else "")
