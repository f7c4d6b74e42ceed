"""Run the tests on other versions of Python and of the dependencies, and write the results into the documentation.

``nox -s matrix`` runs all rows of the table in docs/how_to/install.md, ``nox -s "matrix(3.11-torch2.6)"`` runs one.
Each row has an environment of its own. ``nox --list`` lists them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import nox

sys.path.insert(0, str(Path(__file__).parent))
from benchmarks.documents import document_with, write_part

nox.options.sessions = ["matrix(3.11-newest)"]
nox.options.reuse_existing_virtualenvs = True

# The lowest version of each dependency; torch with the torchvision that belongs to it; or the newest that pip finds.
INSTALLED = {
    "lowest": ["-c", "constraints/lowest.txt", ".[test]"],
    "torch2.6": ["torch==2.6.*", "torchvision==0.21.*", ".[test]"],
    "torch2.9": ["torch==2.9.*", "torchvision==0.24.*", ".[dev]"],
    "torch2.12": ["torch==2.12.*", "torchvision==0.27.*", ".[dev]"],
    "newest": [".[dev]"],
}
ROWS = [
    nox.param(python, installed, id=f"{python}-{installed}")
    for python, installed in [
        ("3.10", "lowest"),
        ("3.11", "torch2.6"),
        ("3.11", "newest"),
        ("3.12", "torch2.9"),
        ("3.12", "torch2.12"),
        ("3.13", "newest"),
        ("3.14", "newest"),
    ]
]
VERSIONS = ["torch", "torchvision", "numpy", "pillow", "matplotlib", "fastprogress"]
LOOK = f"""
import platform
from importlib import metadata
print(platform.python_version(), *map(metadata.version, {VERSIONS}))
"""
COUNTS = ["passed", "skipped", "failed"]
HEADER = f"| {' | '.join(['Python', VERSIONS[0], *COUNTS, *VERSIONS[1:]])} |"


@nox.session
@nox.parametrize(("python", "installed"), ROWS)
def matrix(session: nox.Session, installed: str) -> None:
    """Run the quick tests on one row, and write the number of tests passed into the table."""
    session.install(*INSTALLED[installed])
    versions = str(session.run("python", "-c", LOOK, silent=True)).split()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["python", "-m", "pytest", "-q", f"--junitxml={report}", *session.posargs]
        session.run(*command, env={"OMP_NUM_THREADS": "1"}, success_codes=[0, 1])
        suite = next(ElementTree.parse(report).iter("testsuite"))
    count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - count["skipped"] - failed
    if not session.posargs:  # which can select tests
        write_row([*versions[:2], str(passed), str(count["skipped"]), str(failed), *versions[2:]])
    if failed:
        session.error(f"{failed} of {count['tests']} tests failed.")


def write_row(cells: list[str]) -> None:
    """Write a row into the table; it replaces the row with the same Python and torch."""

    def versions(row: list[str]) -> list[tuple[int, ...]]:
        python, torch = (cell.partition("+")[0].split(".")[:2] for cell in row[:2])
        return [tuple(map(int, python)), tuple(map(int, torch))]

    text = document_with("matrix").read_text().partition("<!-- matrix -->")[2].partition("<!-- /matrix -->")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| 3.")]
    rows = sorted([row for row in rows if versions(row) != versions(cells)] + [cells], key=versions)
    lines = [HEADER, "|---" * HEADER.count(" | ") + "|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    write_part("matrix", "\n".join(lines))
