"""A frozen backbone: five epochs of the head against one, and a step with augmentation against one of all layers."""

from __future__ import annotations

import torch

from benchmarks.timing import Row, compare, interleaved, seconds
from minifast import Learner, TensorDataBunch, get_transforms, vision_learner

N, N_VALID, SIDE, BATCH, EPOCHS, ROUNDS = 397, 153, 128, 32, 5, 5  # as many images as the ants and bees


def rows() -> list[Row]:
    """Train a ResNet-18 in interleaved rounds, with one thread."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (N, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    y = torch.randint(2, (N,), generator=generator)

    def make_learner(tfms: object = None) -> Learner:
        data = TensorDataBunch.from_arrays(x, y, N_VALID / N, bs=BATCH, seed=0, device="cpu", ds_tfms=tfms)
        learn = vision_learner(data, "resnet18", pretrained=False, silent=True)
        learn.freeze()
        return learn

    def head(epochs: int) -> float:
        learn = make_learner()
        return seconds(lambda: learn.fit(epochs, 1e-3))

    def augmented(frozen: bool) -> float:
        learn = make_learner(get_transforms())
        if not frozen:
            learn.unfreeze()
        batches = [batch for _, batch in zip(range(2), learn.data.train_dl, strict=False)]
        learn.data.train_dl, learn.data.valid_dl = batches, None
        return seconds(lambda: learn.fit(1, 1e-3))

    runs = {"five": lambda: head(EPOCHS), "one": lambda: head(1)}
    runs |= {"frozen": lambda: augmented(True), "whole": lambda: augmented(False)}
    times = interleaved(runs, ROUNDS)
    return [
        compare(f"{EPOCHS} epochs of the head of a frozen ResNet-18, against one epoch", times, "five", "one", 1.3),
        compare("augmented batches with a frozen ResNet-18, against all layers", times, "frozen", "whole", 0.45),
    ]
