"""Two machines, of which each has a torchrun of its own, here on one; SLURM's variables change nothing."""

from __future__ import annotations

import socket
import subprocess
import sys

import cases
import pytest
from test_processes import HERE, check, environment, results

CASES = ("files", "65 samples, AdamW", "DataLoader")


@pytest.mark.slow
def test_two_machines_train_as_one_process_and_write_files_once(tmp_path):
    cases.main(str(tmp_path), *CASES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "run1"]
    command += ["--local-addr", "127.0.0.1", str(HERE / "cases.py"), str(tmp_path), *CASES]
    nodes = [
        subprocess.Popen(
            command,
            env=environment(SLURM_PROCID=str(node), SLURM_LOCALID="0", SLURM_NTASKS="2", SLURM_JOB_ID="7"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    for node in nodes:
        _, errors = node.communicate(timeout=500)
        assert node.returncode == 0, errors[-3000:]
    for name in CASES:
        check(name, results(tmp_path, 1)[0], results(tmp_path, 2))
