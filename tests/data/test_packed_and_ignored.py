"""Inputs that are a PackedSequence, and targets that the loss ignores."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from minifast import DataBunch, Learner, accuracy


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(4, 4), nn.Linear(4, 2)

    def forward(self, x: PackedSequence) -> torch.Tensor:
        return self.head(self.recurrent(x)[1][-1])


def test_a_packed_sequence_is_one_input() -> None:
    torch.manual_seed(0)
    lengths = ([5, 2, 3], [4, 1])
    batches = [
        (pack_sequence([torch.randn(n, 4) for n in sizes], enforce_sorted=False), torch.arange(len(sizes)) % 2)
        for sizes in lengths
    ]
    learn = Learner(
        DataBunch(batches, batches, device="cpu", classes=["a", "b"]), Recurrent(), metrics=[accuracy], silent=True
    )
    learn.fit(1)
    outputs = torch.cat([learn.model(x) for x, _ in batches])
    expected = nn.functional.cross_entropy(outputs, torch.cat([y for _, y in batches])).item()
    assert abs(learn.validate()[0] - expected) < 1e-5
    assert learn.get_preds()[0].shape == (5, 2)


def test_ignored_targets_are_shown_as_ignored(capsys) -> None:
    batch = torch.randn(6, 4), torch.tensor([-100, 0, 1, -100, 1, 0])
    learn = Learner(DataBunch([batch], [batch], device="cpu", classes=["cat", "dog"]), nn.Linear(4, 2), silent=True)
    learn.show_results(rows=6)
    assert capsys.readouterr().out.count("ignored") == 2
