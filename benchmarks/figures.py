"""The README's two figures: the learning rate finder's curve and the 1cycle schedule."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch

from minifast import ImageDataBunch, Learner, URLs, accuracy, simple_cnn, untar_data

FOLDER = Path(__file__).parents[1] / "nbs" / "images"


def main() -> None:
    """Write both figures."""
    mpl.use("agg")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = ImageDataBunch.from_folder(untar_data(URLs.MNIST_SAMPLE), seed=0)
    learn = Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy], silent=True)
    FOLDER.mkdir(exist_ok=True)
    learn.lr_find()
    learn.recorder.plot(return_fig=True).savefig(FOLDER / "lr_find.png", dpi=80)
    learn.fit_one_cycle(2, 5e-2)
    learn.recorder.plot_lr(show_moms=True, return_fig=True).savefig(FOLDER / "one_cycle.png", dpi=80)
    print(f"Wrote {FOLDER / 'lr_find.png'} and {FOLDER / 'one_cycle.png'}.")
