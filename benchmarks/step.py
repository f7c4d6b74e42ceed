"""Time per step of ``fit_one_cycle`` on a tiny model, where the loop dominates, and of ``lr_find``."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from benchmarks.hand_written_loop import adamw
from benchmarks.timing import Row, compare, interleaved, seconds
from minifast import DataBunch, Learner

N = 1000


def bare(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return µs per step of a bare loop with a fused optimizer: no schedule, and only the loss is recorded."""
    model = nn.Linear(10, 2)
    optimizer = adamw(model)
    losses = []

    def run() -> None:
        for x, y in batches:
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())

    return seconds(run) / len(batches) * 1e6


def learner(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Learner:
    """Return a silent learner with the same model and batches."""
    return Learner(DataBunch(batches, device="cpu", loss_func=functional.cross_entropy), nn.Linear(10, 2), silent=True)


def rows() -> list[Row]:
    """Compare in interleaved rounds."""
    torch.set_num_threads(1)
    batches = [(torch.randn(64, 10), torch.randint(2, (64,))) for _ in range(N)]
    hundred = batches[:100]

    def ours() -> float:
        learn = learner(batches)
        return seconds(lambda: learn.fit_one_cycle(1, 1e-2)) / N * 1e6

    def find_lr() -> float:
        learn = learner(hundred)
        return seconds(lambda: learn.lr_find(stop_div=False))

    def train_steps() -> float:
        learn = learner(hundred)
        return seconds(lambda: learn.fit(1, 1e-3))

    # Fewer rounds vary by a tenth on a shared machine.
    times = interleaved({"bare": lambda: bare(batches), "ours": ours}, rounds=75)
    finder = interleaved({"train": train_steps, "lr_find": find_lr}, rounds=75)
    return [
        compare("a step of `fit_one_cycle`, `Linear(10, 2)`, against the bare loop", times, "ours", "bare", 1.08, "µs"),
        compare("`lr_find()` against 100 steps of `fit`, `Linear(10, 2)`", finder, "lr_find", "train", 1.15),
    ]
