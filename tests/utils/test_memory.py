"""Freed memory is used again without Linux clearing it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource
import numpy as np
from minifast.utils.memory import keep_freed_memory
{before}
def step():
    [np.ones(200_000, np.uint8) for _ in range(16)]
step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_uses_the_memory_of_the_last_one():
    def faults(before: str) -> int:
        code = CODE.format(before=before)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", code]
        return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    assert faults("") > 2000
    assert faults("keep_freed_memory()") < 200
