"""Hand-written PyTorch training loops for comparison, as fast as plain PyTorch code gets."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast import simple_cnn


def adamw(model: nn.Module, lr: float = 5e-2) -> torch.optim.Optimizer:
    """Return minifast's default optimizer."""
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)


def one_cycle(optimizer: torch.optim.Optimizer, i: int, n: int, lr_max: float) -> None:
    """Set learning rate and momentum of batch ``i`` of ``n``."""
    n_warmup = int(n * 0.3)
    if i < n_warmup:
        p = i / n_warmup
        lr, mom = lr_max / 25 + p * (lr_max - lr_max / 25), 0.95 - 0.1 * p
    else:
        factor = (math.cos(math.pi * (i - n_warmup) / (n - n_warmup)) + 1) / 2
        lr, mom = lr_max * factor, 0.95 - 0.1 * factor
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["betas"] = (mom, 0.99)


def batches(x: Tensor, y: Tensor, shuffle: bool, bs: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of tensors; a shuffled pass has no partial batch."""
    if not shuffle:
        yield from zip(x.split(bs), y.split(bs), strict=True)
        return
    order = torch.randperm(len(x))
    for i in range(0, len(x) - bs + 1, bs):
        rows = order[i : i + bs]
        yield x[rows], y[rows]


def mnist(train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], epochs: int = 2, lr_max: float = 5e-2) -> float:
    """Train ``simple_cnn`` with the 1cycle policy, validate each epoch, and return the last accuracy.

    The tensors are floats with 3 channels in the channels_last memory format, which is the faster one.
    """
    model = simple_cnn((3, 16, 16, 2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = adamw(model)
    n, i, losses, accuracy = epochs * (len(train[0]) // 64), 0, [], 0.0
    for epoch in range(epochs):
        model.train()
        for x, y in batches(*train, shuffle=True):
            one_cycle(optimizer, i, n, lr_max)
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            i += 1
        model.eval()
        total = correct = 0.0
        with torch.no_grad():
            for x, y in batches(*valid, shuffle=False):
                output = model(x)
                total += functional.cross_entropy(output, y, reduction="sum").item()
                correct += (output.argmax(1) == y).sum().item()
        accuracy = correct / len(valid[0])
        print(f"{epoch} {losses[-1]:.6f} {total / len(valid[0]):.6f} {accuracy:.6f}", flush=True)
    return accuracy
