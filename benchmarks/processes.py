"""A whole process from a cold start with cached data: minifast against its peers at the same task."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.timing import Row, compare, interleaved, process
from minifast import ImageDataBunch, URLs, untar_data

PEERS = {"minifast": "minifast", "fastai": "fastai", "lightning": "lightning", "skorch": "skorch",
         "keras": "keras", "ignite": "ignite", "accelerate": "accelerate", "torchtnt": "torchtnt"}  # fmt: skip
SCRIPTS = Path(__file__).parent / "peers"


def rows() -> list[Row]:
    """Compare in interleaved rounds with each installed peer, and print the names of the others."""
    installed = [name for name in PEERS if importlib.util.find_spec(PEERS[name])]
    for name in PEERS.keys() - set(installed):
        print(f"{name} is not installed and left out; python -m pip install '.[bench]' installs it.")
    sample = untar_data(URLs.MNIST_SAMPLE)
    data = ImageDataBunch.from_folder(sample, seed=0, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tensors.pt"
        torch.save([(loader.x, loader.y) for loader in (data.train_dl, data.valid_dl)], file)

        def script(name: str) -> float:
            return process([str(SCRIPTS / f"{name}_.py")], MNIST_SAMPLE=str(sample), MNIST_TENSORS=str(file))

        names = [*installed, "hand_written", "minifast_gc_freeze"]
        times = interleaved({name: lambda name=name: script(name) for name in names}, rounds=7)
    peers = [name for name in installed if name != "minifast"]
    quickest = min(peers, key=lambda name: statistics.median(times[name]))
    return [
        *(
            compare(
                f"whole process, MNIST_SAMPLE, against {name}",
                times,
                "minifast",
                name,
                0.5 if name == quickest else None,
            )
            for name in peers
        ),
        compare(
            "the same, against a hand-written loop on tensors in one file", times, "minifast", "hand_written", None
        ),
        compare(
            f"with `gc.freeze()` after the imports, against {quickest}", times, "minifast_gc_freeze", quickest, None
        ),
    ]
