"""Parts of a document that a command writes, between a pair of comments."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def write_part(name: str, text: str, document: Path = README) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    old = document.read_text()
    new, found = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{text.rstrip()}\n{m[2]}", old, flags=re.DOTALL
    )
    if not found:
        raise SystemExit(f"{document.name} has no part {name}.")
    document.write_text(new)
