"""What a finder leaves behind and what a kill costs: minifast, fastai and Lightning in the same tests."""

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


def measured(name: str) -> dict[str, Any]:
    """Return what a library's script found, in ``cells`` by test, and in ``tried`` what was tried."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SCRIPTS / f"lost_{name}.py"), folder]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def report() -> str:
    """Return a table with a row for each test and a column for each library, and a line of what was tried."""
    found = {name: measured(name) for name in LIBRARIES if importlib.util.find_spec(name)}
    absent = [name for name in LIBRARIES if name not in found]
    lines = [f"| test | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for test in found["minifast"]["cells"]:
        lines.append(f"| {test} | {' | '.join(one['cells'][test] for one in found.values())} |")
    left_out = f" Not installed and left out: {', '.join(absent)}." if absent else ""
    return "\n".join([*lines, "", found["minifast"]["tried"] + left_out])


if __name__ == "__main__":
    print(report())
