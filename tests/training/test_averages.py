"""The moving average of the losses after losses were removed or replaced."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from minifast.training.averages import Losses

VALUES = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8)


def losses_of(values: list[float]) -> Losses:
    losses = Losses()
    for value in values:
        losses.append(torch.tensor(value))
    return losses


@given(VALUES, VALUES, st.data())
def test_the_average_is_that_of_the_remaining_losses(values, more, data) -> None:
    losses = losses_of(values)
    assert len(losses.smoothed()) == len(values)
    n = data.draw(st.integers(0, len(values)))
    losses.truncate(n)
    assert len(losses.smoothed()) == n
    losses.restore(more)
    assert losses.smoothed() == losses_of(more).smoothed()
