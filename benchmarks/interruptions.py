"""State after the learning rate finder and cost of a kill: minifast, fastai and Lightning in the same tests."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import ROOT

LIBRARIES = ("minifast", "fastai", "lightning")
SCRIPTS = Path(__file__).parent / "peers"


def measure(name: str) -> dict[str, Any]:
    """Return the results of a library's script: ``cells`` by test, and ``tried``, a description of the tests."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SCRIPTS / f"interruptions_{name}.py"), folder]
        process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def report() -> str:
    """Return a table with one row per test and one column per library, and a description of the tests."""
    results = {name: measure(name) for name in LIBRARIES if importlib.util.find_spec(name)}
    absent = [name for name in LIBRARIES if name not in results]
    lines = [f"| test | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for test in results["minifast"]["cells"]:
        lines.append(f"| {test} | {' | '.join(result['cells'][test] for result in results.values())} |")
    left_out = f" Not installed and left out: {', '.join(absent)}." if absent else ""
    return "\n".join([*lines, "", results["minifast"]["tried"] + left_out])


if __name__ == "__main__":
    print(report())
