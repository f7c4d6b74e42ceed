"""A training step in two processes that train together, against plain DistributedDataParallel in the same processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.hand_written_loop import adamw
from benchmarks.timing import ROOT, Row, compare, interleaved, seconds
from minifast import Learner, TensorDataBunch, models, set_seed, simple_ann

BATCH, ROUNDS = 64, 5
# Name, shape of a sample, the model, and batches of a pass.
MODELS: tuple[tuple[str, tuple[int, ...], Callable[[], nn.Module], int], ...] = (
    ("`simple_ann(32, 2)`", (32,), lambda: simple_ann(32, 2), 400),
    ("ResNet-18, 64 × 64", (3, 64, 64), lambda: models.resnet18(num_classes=2), 20),
)


def rows() -> list[Row]:
    """Start the two processes, in which both loops run in turn."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The processes failed:\n{done.stderr}")
    return [Row(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def measure(name: str, shape: tuple[int, ...], make: Callable[[], nn.Module], n_batches: int) -> Row:
    """Return the milliseconds per step of both loops, in a process of the group."""
    set_seed(0)
    x, y = torch.randn(n_batches * BATCH, *shape), torch.randint(2, (n_batches * BATCH,))
    data = TensorDataBunch.from_arrays(x, y, valid_pct=0.01, bs=BATCH, seed=0, device="cpu")
    data.valid_dl = None
    learn = Learner(data, make(), silent=True)
    rank, n = distributed.get_rank(), len(data.train_dl)
    module = make()
    model, optimizer = DistributedDataParallel(module), adamw(module, 1e-3)

    def ours() -> None:
        learn.fit(1, 1e-3)

    def plain() -> None:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        for i in range(n):
            share = order[i * BATCH : (i + 1) * BATCH].chunk(2)[rank]
            loss = functional.cross_entropy(model(x[share]), y[share])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()

    runs = {"ours": ours, "plain": plain}
    times = interleaved({key: lambda run=run: seconds(run) / n * 1e3 for key, run in runs.items()}, ROUNDS)
    return compare(
        f"a step of two processes, {name}, against DistributedDataParallel", times, "ours", "plain", None, "ms"
    )


def main() -> None:
    """Measure in this process, one of the group, and let the first print the rows."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found = [measure(*model) for model in MODELS]
    if distributed.get_rank() == 0:
        print(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
