"""Classes of pixels and of the positions of sequences: metrics and interpretation against a loop over all of them."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import DataBunch, DataError, Learner, accuracy, error_rate, top_k_accuracy
from minifast.metrics import foreground_acc

IGNORED = -100


class Echo(nn.Module):
    """A model whose outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + 0 * self.weight


class LastClasses(nn.CrossEntropyLoss):
    """Cross entropy of outputs ``(n, ..., classes)``."""

    def forward(self, output, y):
        return super().forward(output.movedim(-1, 1), y)


def echo(x, y, loss_func, bs) -> Learner:
    items = TensorDataset(x, y)
    metrics = [accuracy, error_rate, functools.partial(top_k_accuracy, k=2), foreground_acc]
    metrics.append(functools.partial(foreground_acc, void_code=2))
    loader = DataLoader(items, bs)
    return Learner(DataBunch(loader, loader, device="cpu"), Echo(), loss_func=loss_func, metrics=metrics, silent=True)


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 999), bs=st.integers(1, 6), weighted=st.booleans())
@pytest.mark.parametrize("layout", ["pixels", "sequences"])
def test_each_position_that_counts_counts_once(layout, data, seed, bs, weighted):
    n, classes = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 5))
    positions = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)) if layout == "pixels" else st.just((3,)))
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, *positions, classes, generator=generator)
    y = torch.randint(classes, (n, *positions), generator=generator)
    y[torch.rand(y.shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.3, 0.8]))] = IGNORED
    y.view(-1)[0] = 0
    weight = torch.rand(classes, generator=generator) + 0.1 if weighted else None
    x, loss = (outputs, LastClasses(weight)) if layout == "sequences" else (outputs.movedim(-1, 1), None)
    learn = echo(x, y, nn.CrossEntropyLoss(weight) if loss is None else loss, bs)

    rows = [
        (list(row), int(target)) for row, target in zip(outputs.reshape(-1, classes).tolist(), y.flatten(), strict=True)
    ]
    pairs = [(int(np.argmax(row)), row, target) for row, target in rows if target != IGNORED]
    right = mean(guess == target for guess, _, target in pairs)
    best = mean(target in sorted(range(classes), key=lambda i: -row[i])[:2] for _, row, target in pairs)
    without = [mean(guess == target for guess, _, target in pairs if target != void) for void in (0, 2)]
    found = learn.validate()[1:]
    assert found == pytest.approx([right, 1 - right, best, *without], abs=1e-5, nan_ok=True)

    softmax = outputs.softmax(-1) if layout == "sequences" else x.softmax(1)
    assert torch.allclose(learn.get_preds()[0], softmax, atol=1e-6)
    assert torch.allclose(learn.pred_batch(), softmax[:bs], atol=1e-6)
    interpretation = learn.interpret()
    table = np.zeros((classes, classes), dtype=int)
    for guess, _, target in pairs:
        table[target, guess] += 1
    assert interpretation.confusion_matrix().tolist() == table.tolist()
    assert sum(count for _, _, count in interpretation.most_confused()) == table.sum() - np.trace(table)
    assert interpretation.pred_class.shape == y.shape
    for i in range(n):
        expected = learn.loss_func(x[i : i + 1], y[i : i + 1]).item() if (y[i] != IGNORED).any() else 0.0
        assert interpretation.losses[i].item() == pytest.approx(expected, abs=1e-4)


def test_masks_of_a_single_output_are_those_of_two_classes():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 1, 4, 3, generator=generator), torch.randint(2, (5, 1, 4, 3), generator=generator)
    learn = echo(x, y.float(), nn.BCEWithLogitsLoss(), 2)
    learn.metrics = [accuracy, foreground_acc]
    guess = x > 0
    assert learn.validate()[1:] == pytest.approx(
        [(guess == y).float().mean().item(), guess[y == 1].float().mean().item()]
    )
    expected = [[int(((y == i) & (guess == j)).sum()) for j in (0, 1)] for i in (0, 1)]
    assert learn.interpret().confusion_matrix().tolist() == expected


def test_the_largest_losses_of_images_and_sequences_are_shown_with_their_accuracy(capsys):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(4, 3, 8, 8, generator=generator), torch.randint(3, (4, 8, 8), generator=generator)
    learn = echo(x, y, nn.CrossEntropyLoss(), 2)
    figure = learn.interpret().plot_top_losses(2, return_fig=True)
    losses, indices = learn.interpret().top_losses(2)
    right = (x.argmax(1) == y).flatten(1).float().mean(1)[indices]
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == [f"{loss:.2f} / {share:.2f}" for loss, share in zip(losses.tolist(), right.tolist(), strict=True)]
    words = echo(torch.randn(4, 5, 3), torch.randint(3, (4, 5)), LastClasses(), 2)
    words.interpret().plot_top_losses(2)
    assert capsys.readouterr().out.splitlines()[0].split() == ["sample", "loss", "accuracy"]


def test_targets_that_are_no_class_numbers_are_named():
    learn = echo(torch.randn(4, 3, 5), torch.rand(4, 3, 5), nn.MSELoss(), 2)
    with pytest.raises(DataError, match=r"The outputs have the shape \(4, 3, 5\) and the targets \(4, 3, 5\)"):
        learn.interpret()
    learn = echo(torch.randn(4, 3, 5), torch.rand(4, 5), lambda output, y: output.mean() + y.mean(), 2)
    with pytest.raises(DataError, match=r"The targets are torch.float32 of the shape \(4, 5\); a classifier needs"):
        learn.interpret()


def test_the_sample_of_a_sequence_has_the_class_of_each_position():
    x, y = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 5, dtype=torch.int64)
    loader = DataLoader(TensorDataset(x, y), 2)
    data = DataBunch(loader, loader, device="cpu", classes=["a", "b", "c"])
    learn = Learner(data, Echo(), loss_func=LastClasses(), silent=True)
    numbers, _, probabilities = learn.predict(x[0])
    assert numbers.tolist() == x[0].argmax(-1).tolist()
    assert torch.allclose(probabilities, x[0].softmax(-1))
