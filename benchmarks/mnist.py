"""Two epochs of the 1cycle policy on MNIST_SAMPLE, against a hand-written loop on the same tensors."""

from __future__ import annotations

import contextlib
import io
import tempfile

import torch

from benchmarks import hand_written_loop
from benchmarks.timing import Row, compare, interleaved, seconds
from minifast import ImageDataBunch, Learner, URLs, accuracy, simple_cnn, untar_data
from minifast.data.loaders import as_images


def rows() -> list[Row]:
    """Compare in interleaved rounds; printing of tables is included."""
    torch.set_num_threads(1)
    data = ImageDataBunch.from_folder(untar_data(URLs.MNIST_SAMPLE), seed=0, device="cpu")
    train, valid = (
        (as_images(dl.x).contiguous(memory_format=torch.channels_last), dl.y) for dl in (data.train_dl, data.valid_dl)
    )

    def ours() -> float:
        learn = Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy])
        return seconds(lambda: learn.fit_one_cycle(2, 5e-2))

    def find_lr() -> float:
        learn = Learner(data, simple_cnn((3, 16, 16, 2)), silent=True)
        return seconds(lambda: learn.lr_find(stop_div=False))

    def train_steps() -> float:
        learn = Learner(data, simple_cnn((3, 16, 16, 2)), silent=True)
        learn.data.valid_dl, valid_dl = None, learn.data.valid_dl
        try:
            return seconds(lambda: learn.fit(1, 1e-3)) * 100 / len(data.train_dl)
        finally:
            learn.data.valid_dl = valid_dl

    def checkpointed(every: int | None) -> float:
        with tempfile.TemporaryDirectory() as folder:
            learn = Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy], path=folder)
            return seconds(lambda: learn.fit_one_cycle(2, 5e-2, checkpoint="run", every=every))

    with contextlib.redirect_stdout(io.StringIO()):
        times = interleaved({"hand": lambda: seconds(lambda: hand_written_loop.mnist(train, valid)), "ours": ours})
        finder = interleaved({"train": train_steps, "lr_find": find_lr})
        saving = interleaved(
            {"none": ours, "epoch": lambda: checkpointed(None), "20 batches": lambda: checkpointed(20)}
        )
    n_saves = len(data.train_dl) // 20
    return [
        compare("`fit_one_cycle(2, 5e-2)`, MNIST_SAMPLE, against a hand-written loop", times, "ours", "hand", 1.03),
        compare("`lr_find()` against 100 training steps, MNIST_SAMPLE", finder, "lr_find", "train", 1.15),
        compare("two epochs with `checkpoint=`, against without", saving, "epoch", "none", 1.05),
        compare(f"the same with `every=20`, {n_saves} more saves per epoch", saving, "20 batches", "none", None),
    ]
