"""Write generated text into the documentation, between a pair of comments."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def document_with(name: str) -> Path:
    """Return the page that has the comment ``<!-- name -->``."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
    matches = [page for page in pages if f"<!-- {name} -->" in page.read_text()]
    if len(matches) != 1:
        raise SystemExit(f"Expected one page with <!-- {name} -->, found {len(matches)}.")
    return matches[0]


def write_part(name: str, text: str, document: Path | None = None) -> None:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->`` in a page of the documentation."""
    document = document or document_with(name)
    new, count = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
        lambda match: f"{match[1]}{text.rstrip()}\n{match[2]}",
        document.read_text(),
        flags=re.DOTALL,
    )
    if not count:
        raise SystemExit(f"{document.name} has no <!-- {name} --> with a <!-- /{name} -->.")
    document.write_text(new)
