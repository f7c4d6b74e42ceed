"""An extension of mkdocstrings that formats docstrings for the site: doctests, and entries of several names."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)  # to an empty line
SEVERAL = re.compile(r"^ {4}(\w+(?:, \w+)+):( .*(?:\n {6,}\S.*)*)$", re.MULTILINE)


def split_entry(match: re.Match[str]) -> str:
    """Join an entry of several errors; split an entry of several arguments into one entry per argument."""
    names = match[1].split(", ")
    if names[0].endswith("Error"):
        return f"    {' | '.join(names)}:{match[2]}"
    return "\n".join(f"    {name}:{match[2]}" for name in names)


class Examples(griffe.Extension):
    """Puts each doctest into a code block, and splits entries of several names."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring:
            # griffe knows a section of examples by its plural only
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = SEVERAL.sub(split_entry, text)
            obj.docstring.value = EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", text)
