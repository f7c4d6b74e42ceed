"""The first training of a process against its second: what a process pays only once."""

from __future__ import annotations

from benchmarks.timing import Row, compare, numbers_of
from minifast import URLs, untar_data

OURS = """
learn = Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy])
learn.fit_one_cycle(2, 5e-2)
"""
HAND_WRITTEN = "hand_written_loop.mnist(train, valid)"
TWICE = """
import torch
from benchmarks import hand_written_loop
from benchmarks.timing import seconds
from minifast import *
from minifast.data.loaders import as_images
torch.set_num_threads(1)
data = ImageDataBunch.from_folder({sample!r}, seed=0)
train, valid = (
    (as_images(dl.x).contiguous(memory_format=torch.channels_last), dl.y) for dl in (data.train_dl, data.valid_dl)
)
print(*(seconds(lambda: exec({code!r})) for _ in range(2)))
"""


def rows(rounds: int = 7) -> list[Row]:
    """Train twice in each of several fresh processes, with minifast and with a hand-written loop in turn."""
    sample = str(untar_data(URLs.MNIST_SAMPLE))
    times: dict[str, dict[str, list[float]]] = {code: {"first": [], "second": []} for code in (OURS, HAND_WRITTEN)}
    for _ in range(rounds):
        for code, runs in times.items():
            first, second = numbers_of(TWICE.format(sample=sample, code=code))
            runs["first"].append(first)
            runs["second"].append(second)
    what = "first run of {} in a process, against the second"
    return [
        compare(what.format("`fit_one_cycle(2, 5e-2)`"), times[OURS], "first", "second", 1.07),
        compare(what.format("the hand-written loop"), times[HAND_WRITTEN], "first", "second", None),
    ]
