"""Peak memory against a hand-written loop, and of a data set ten times as large that is read from files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.timing import Row, compare, interleaved, numbers_of, peak_memory
from minifast import URLs, untar_data

HAND_WRITTEN = """
import os
os.environ["MNIST_SAMPLE"] = {sample!r}
import sys
sys.path.insert(0, "benchmarks/peers")
import common, torch
from benchmarks import hand_written_loop
torch.set_num_threads(1)
train, valid = map(common.tensors, ("train", "valid"))
hand_written_loop.mnist(*((x.contiguous(memory_format=torch.channels_last), y) for x, y in (train, valid)))
"""
OURS = """
import torch
from minifast import *
torch.set_num_threads(1)
data = ImageDataBunch.from_folder({sample!r}, seed=0)
Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy]).fit_one_cycle(2, 5e-2)
"""
STREAMED = """
import torch
from minifast import *
torch.set_num_threads(1)
data = ImageDataBunch.from_folder({folder!r}, seed=0, size=224, memory=0, num_workers=0, bs=16)
Learner(data, simple_cnn((3, 8, 2)), metrics=[accuracy]).fit(1, 1e-3)
"""
LARGE = """
import tempfile
import torch
from pathlib import Path
from minifast import *
torch.set_num_threads(1)
data = TensorDataBunch.from_arrays(torch.randn(64, 1000), torch.randn(64, 1), seed=0, bs=8, device="cpu")
model = torch.nn.Sequential(torch.nn.Linear(1000, 25000), torch.nn.Linear(25000, 1))
with tempfile.TemporaryDirectory() as folder:
    learn = Learner(data, model, silent=True, path=folder)
    {run}
"""
FIT = "learn.fit(1, 1e-3)"
SIZE = "learn.fit(1, 1e-3, checkpoint='run'); print(Path(folder, 'models', 'run.checkpoint').stat().st_size / 2**20)"
TENSORS = 3 * (1000 * 25000 + 25000 + 25000 + 1) * 4 / 2**20  # MB of the weights and two moments of AdamW


def rows() -> list[Row]:
    """Compare fresh processes."""
    sample = str(untar_data(URLs.MNIST_SAMPLE))
    code = {"hand": HAND_WRITTEN.format(sample=sample), "ours": OURS.format(sample=sample)}
    peaks = interleaved({name: lambda name=name: peak_memory(code[name]) for name in code}, rounds=3)
    results = [compare("peak memory, MNIST_SAMPLE, against a hand-written loop", peaks, "ours", "hand", 1.1, "MB")]
    with tempfile.TemporaryDirectory() as home:
        from benchmarks.decode import write_photographs

        folders = {n: write_photographs(Path(home) / str(n), n) for n in (200, 2000)}
        code = {str(n): STREAMED.format(folder=str(folder)) for n, folder in folders.items()}
        peaks = interleaved({name: lambda name=name: peak_memory(code[name]) for name in code}, rounds=1)
    results.append(compare("peak memory, 2,000 photographs from files, against 200", peaks, "2000", "200", 1.1, "MB"))
    large = {"fit": FIT, "lr_find": f"{FIT}; learn.lr_find(num_it=20)"}
    peaks = interleaved(
        {name: lambda run=run: peak_memory(LARGE.format(run=run)) for name, run in large.items()}, rounds=3
    )
    peaks |= {"added": [b - a for a, b in zip(*peaks.values(), strict=True)], "tensors": [TENSORS] * 3}
    peaks["file"] = numbers_of(LARGE.format(run=SIZE)) * 3
    what = "of a model of 25 million weights with AdamW, against weights and optimizer state"
    results.append(compare(f"memory that `lr_find` adds to a fit {what}", peaks, "added", "tensors", 1.0, "MB"))
    results.append(compare(f"size of a checkpoint {what}", peaks, "file", "tensors", 1.1, "MB"))
    return results
