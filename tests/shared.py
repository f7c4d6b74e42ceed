"""What the tests import from conftest: one thread, no display, small data and learners."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from minifast import Callback, DataBunch, Learner, accuracy, simple_ann

mpl.use("agg")
torch.set_num_threads(1)  # two threads beside any other load can be many times slower than one


def slow(*cases: object) -> list:
    """Cases of a parametrized test that run with ``-m slow`` only; a case for several arguments is a tuple."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def toy_items(n: int = 60, seed: int = 0) -> TensorDataset:
    """Two classes of ten numbers that a small network can tell apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 10, generator=generator) + y[:, None]
    return TensorDataset(x, y)


def toy_data(n: int = 60, bs: int = 20, shuffle: bool = False) -> DataBunch:
    """A bunch of toy items from a pair of torch DataLoaders: n / bs batches each."""
    items = toy_items(n)
    generator = torch.Generator().manual_seed(1)
    train_dl = DataLoader(items, bs, shuffle=shuffle, generator=generator if shuffle else None)
    return DataBunch(train_dl, DataLoader(items, bs), device="cpu")


def toy_learner(n: int = 60, bs: int = 20, **kwargs) -> Learner:
    """A silent learner over toy data, the same one each time."""
    torch.manual_seed(0)
    options = {"metrics": [accuracy], "silent": True} | kwargs
    return Learner(toy_data(n, bs), simple_ann(10, 2, 8), **options)


def write_images(folder: Path, n: int, size: tuple[int, int] = (28, 28), mode: str = "L", seed: int = 0) -> None:
    """Write ``n`` random PNG pictures, ``size`` as (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    channels = () if mode == "L" else (3,)
    for i in range(n):
        pixels = rng.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")


class FailsAt(Callback):
    """Ends a run with an error before a training batch; it has no state of its own."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def on_batch_begin(self, iteration, train):
        if train and iteration == self.at:
            raise OSError("gone")

    def state_dict(self):
        return {}


def rates_used(learn: Learner) -> tuple[list[list[float]], Callback]:
    """A list, and a callback that puts the rates of the layer groups into it at each training batch."""
    used: list[list[float]] = []

    class Notes(Callback):
        def on_backward_end(self):
            used.append(learn.opt.read("lr"))

    return used, Notes()


def as_html(content: object) -> str:
    """fastprogress 1.0 shows text, later versions objects that IPython asks for HTML."""
    to_html = getattr(content, "_repr_html_", None) or getattr(content, "__html__", None)
    return content if isinstance(content, str) or to_html is None else to_html()
