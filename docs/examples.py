"""An extension of mkdocstrings: docstrings as they are written here, in the form that it shows well."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)  # to an empty line
SEVERAL = re.compile(r"^ {4}(\w+(?:, \w+)+):( .*(?:\n {6,}\S.*)*)$", re.MULTILINE)


def apart(found: re.Match[str]) -> str:
    """Return an entry of several errors as one, and one of several arguments as an entry each."""
    names = found[1].split(", ")
    if names[0].endswith("Error"):
        return f"    {' | '.join(names)}:{found[2]}"
    return "\n".join(f"    {name}:{found[2]}" for name in names)


class Examples(griffe.Extension):
    """Puts a fence around each doctest, and takes entries of several names apart."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring:
            text = SEVERAL.sub(apart, obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
