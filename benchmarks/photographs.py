"""Run the examples of the page about photographs on the images, and write what they print into the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.ants_bees import unpacked
from benchmarks.documents import write_part

PAGE = Path(__file__).parents[1] / "docs" / "how_to" / "photographs.md"
TIMED = """
import resource, sys
used = resource.getrusage(resource.RUSAGE_SELF)
print(f"{used.ru_utime + used.ru_stime:.0f}", file=sys.stderr)
"""


def script() -> str:
    """Return the Python examples of the page, one after another."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE))


def main(data: str | None) -> None:
    """Run the script in a new process, and write its output and its time.

    Args:
        data: the folder of the images, or a ``.tgz`` archive of it.
    """
    if data is None:
        print("photographs: left out; give the folder of the images, or a .tgz archive of it, as --data.")
        return
    with tempfile.TemporaryDirectory() as home:
        folder, place = unpacked(data, home), Path(home) / "ants_bees"
        if not place.exists():
            place.symlink_to(folder.absolute())
        environment = {**os.environ, "MINIFAST_HOME": home, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        environment["PYTHONPATH"] = os.pathsep.join([str(PAGE.parents[2]), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-W", "ignore", "-c", script() + TIMED]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if not re.match(r"Epoch \d+: batch", line)]  # of slow machines
    text = "\n".join(
        ["```text", *lines, "```", "", f"The whole script took {done.stderr.split()[-1]} seconds of CPU time"]
    )
    write_part("photographs", f"{text} on one thread.", PAGE)
