"""The outputs of the notebooks: run each notebook in an empty folder and save it with its outputs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from benchmarks.timing import ROOT


def main() -> None:
    """Run all notebooks and save them."""
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        run(path)
        print(f"Ran {path.name}.", flush=True)


def run(path: Path) -> None:
    """Run one notebook and save it."""
    os.environ["PYTHONPATH"] = str(ROOT)
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day, which differ in every run
    nbformat.write(notebook, path)
