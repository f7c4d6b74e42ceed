"""Code shared by the scripts of the peers: the images as tensors, and the model in plain PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

EPOCHS, BATCH, LR = 2, 64, 5e-2
FOLDER = Path(os.environ["MNIST_SAMPLE"])


def tensors(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode a part of MNIST_SAMPLE: floats (n, 3, 28, 28) in [0, 1], and class indices."""
    files = sorted((FOLDER / part).glob("*/*.png"))
    x = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))
    y = torch.tensor([int(file.parent.name == "7") for file in files])
    return (x[:, None].float() / 255).expand(-1, 3, -1, -1).contiguous(), y


def model() -> nn.Sequential:
    """Return three convolutions with ReLU, and global average pooling."""
    layers: list[nn.Module] = []
    for n_in, n_out in ((3, 16), (16, 16), (16, 2)):
        conv = nn.Conv2d(n_in, n_out, 3, 2, 1)
        nn.init.kaiming_normal_(conv.weight)
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def adamw(parameters: object) -> torch.optim.Optimizer:
    """Return the AdamW optimizer that all peers use."""
    return torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.99), weight_decay=1e-2)  # type: ignore[arg-type]


def one_cycle(optimizer: torch.optim.Optimizer, batches: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """Return torch's 1cycle schedule over ``batches`` batches."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=batches)
