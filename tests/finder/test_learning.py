"""Whether the model learns: the losses against right and shifted targets, and the test on them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from minifast import DataBunch, Learner, TensorLoader, simple_ann
from minifast.finder.learning import Run, ShiftedTargets, learns, run_of
from minifast.losses import LabelSmoothingCrossEntropy, MSELossFlat

CLASSES = (torch.long, lambda n: torch.randint(4, (n,)), lambda n: torch.randn(n, 4))
FLOATS = (torch.float, lambda n: torch.randn(n, 3), lambda n: torch.randn(n, 3))
COLUMN = (torch.float, torch.randn, lambda n: torch.randn(n, 1))
POSITIONS = (torch.long, lambda n: torch.randint(4, (n, 5)), lambda n: torch.randn(n, 4, 5))
LOSSES = [
    (nn.CrossEntropyLoss(), CLASSES),
    (nn.CrossEntropyLoss(), POSITIONS),
    (functional.cross_entropy, CLASSES),
    (LabelSmoothingCrossEntropy(), CLASSES),
    (nn.MSELoss(), FLOATS),
    (nn.L1Loss(), FLOATS),
    (partial(functional.smooth_l1_loss, beta=0.5), FLOATS),
    (MSELossFlat(), COLUMN),
]


@pytest.mark.parametrize(("loss_func", "kind"), LOSSES)
@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_both_losses_are_those_of_the_loss_function(loss_func, kind, sizes, seed) -> None:
    torch.manual_seed(seed)
    _, make_targets, make_outputs = kind
    batches = [(make_outputs(n), make_targets(n)) for n in sizes]
    compared = ShiftedTargets(loss_func)
    for batch in batches:
        compared.add(*batch)
    expected = [[float(loss_func(x, y)), float(loss_func(x, y.roll(1, 0)))] for x, y in batches]
    assert compared.losses() == pytest.approx(np.array(expected), rel=1e-5)
    assert compared.n_targets == sum(y.numel() for _, y in batches)


def test_a_loss_of_your_own_is_not_called_and_not_known() -> None:
    calls = []
    compared = ShiftedTargets(lambda output, target: calls.append(1))
    compared.add(torch.zeros(3, 2), torch.zeros(3))
    assert compared.losses() is None
    assert not calls


@pytest.mark.parametrize(
    ("loss_func", "output", "target"),
    [
        (nn.MSELoss(), (torch.zeros(3), torch.zeros(3)), torch.zeros(3)),
        (nn.MSELoss(), torch.zeros(3), (torch.zeros(3), torch.zeros(3))),
        (nn.MSELoss(), torch.tensor(0.0), torch.tensor(0.0)),
        (nn.MSELoss(reduction="sum"), torch.zeros(3), torch.zeros(3)),
    ],
)
def test_other_outputs_targets_and_sums_are_not_known(loss_func, output, target) -> None:
    compared = ShiftedTargets(loss_func)
    compared.add(output, target)
    assert compared.losses() is None


def test_the_losses_of_a_step_are_means_over_its_batches() -> None:
    run = run_of(np.arange(12.0).reshape(6, 2), [0, 0, 1, 1, 2, 2], 3, 3, 60, 30)
    assert run is not None
    assert run.losses.tolist() == [1, 5, 9]
    assert run.shifted.tolist() == [2, 6, 10]
    assert run.passes.tolist() == pytest.approx([2 / 3, 4 / 3, 2])
    assert run.capacity == 0.5
    assert run_of(np.zeros((2, 2)), [0, 0], 2, 3, 60, 30) is None


def comparison(gain: float, passes: float, capacity: float, seed: int, n: int = 100) -> Run:
    """A run whose right targets have a loss that is lower by ``gain`` from step 60 on."""
    rng = np.random.default_rng(seed)
    shifted = rng.normal(1, 0.05, n)
    losses = shifted - gain * (np.arange(n) >= 60) + rng.normal(0, 0.02, n)
    return Run(losses, shifted, np.linspace(0, passes, n), capacity)


def test_memorizing_may_explain_more_after_more_passes_and_with_more_parameters() -> None:
    assert learns([comparison(0.2, 1, 1, 0)])
    assert not learns([comparison(0.2, 20, 1, 0)])
    assert learns([comparison(0.2, 20, 0.1, 0)])
    assert learns([comparison(0.6, 20, 1, 0)])


def test_chance_is_not_learning_and_what_a_model_knew_before_neither() -> None:
    runs = [comparison(0, 1, 1, seed) for seed in range(300)]
    trained = [run._replace(losses=run.losses - 0.3) for run in runs]
    assert np.mean([learns([run]) for run in runs]) <= 0.02
    assert np.mean([learns([run]) for run in trained]) <= 0.02


def test_points_that_are_not_finite_are_left_out() -> None:
    run = comparison(0.3, 1, 1, 0)
    losses = run.losses.copy()
    losses[[5, 70, 99]] = np.nan, np.inf, np.nan
    assert learns([run._replace(losses=losses)])
    assert not learns([run._replace(losses=np.full(100, np.nan))])


@pytest.mark.parametrize("problem", ["many classes", "unbalanced", "far from 0"])
@pytest.mark.parametrize("opt_func", [partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam])
def test_a_fall_of_the_loss_without_learning_gives_no_rate(problem, opt_func) -> None:
    torch.manual_seed(0)
    x = torch.randn(3000, 10)
    truth = (x @ torch.randn(10) > 0).long()
    make = {
        "many classes": lambda: torch.randint(10, (3000,)),
        "unbalanced": lambda: (torch.rand(3000) < 0.1).long(),
        "far from 0": lambda: torch.randn(3000, 1) + 1,
    }[problem]

    def find(y: torch.Tensor, width: int):
        data = DataBunch(TensorLoader(x, y, 30, shuffle=True, seed=0, device="cpu"), None, device="cpu")
        loss_func = nn.MSELoss() if y.is_floating_point() else nn.CrossEntropyLoss()
        return Learner(data, simple_ann(10, width), opt_func=opt_func, loss_func=loss_func, silent=True).lr_find()

    noise = find(make(), 10 if problem == "many classes" else 1 if problem == "far from 0" else 2)
    assert noise.learned is False
    assert "does not fall more than by chance" in noise.reason
    learned = find(1.0 + truth[:, None] if problem == "far from 0" else truth, 1 if problem == "far from 0" else 2)
    assert learned.learned is True
    assert learned.suggestion is not None
