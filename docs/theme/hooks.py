"""Hooks of mkdocs: pages that live outside ``docs`` (notebooks, benchmarks) become pages of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PAGES = {
    **{notebook: f"tutorials/{notebook.name}" for notebook in sorted((ROOT / "nbs").glob("*.ipynb"))},
    **{image: f"images/{image.name}" for image in sorted((ROOT / "nbs" / "images").glob("*.png"))},
    ROOT / "benchmarks" / "README.md": "explanation/benchmarks.md",
}


@event_priority(100)  # before mkdocs-jupyter, which looks for notebooks among the files
def on_files(files: Any, config: Any) -> Any:
    """Add the pages that live outside ``docs``."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(source)))
    return files


def on_nav(nav: Any, files: Any, **_: Any) -> Any:
    """Say again where the pages are: mkdocs-jupyter's own file objects look for them in ``docs``."""
    for source, page in PAGES.items():
        files.get_file_from_path(page).abs_src_path = str(source)
    return nav


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to files outside ``docs``, which work in the repository, at their pages."""
    here = posixpath.dirname(page.file.src_uri)

    def to_page(link: re.Match[str]) -> str:
        shown = PAGES.get((ROOT / "docs" / here / link[1]).resolve())
        return link[0] if shown is None else f"]({posixpath.relpath(shown, here or '.')}"

    return re.sub(r"\]\(([^)\s#]+)", to_page, markdown)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Point links between notebooks at their pages, and mark code blocks that are errors, which wrap."""
    html = re.sub(
        r'<div class="highlight">(<pre><span></span><code>\w+Error: )', r'<div class="highlight error">\1', html
    )
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    html = re.sub(r'href="(\w+)\.ipynb(#[^"]*)?"', r'href="../\1/\2"', html)
    html = re.sub(r'<script src="-">\s*</script>', "", html)  # in the place of MathJax, which no notebook needs
    return html.replace('href="../benchmarks/README.md"', 'href="../../explanation/benchmarks/"')
