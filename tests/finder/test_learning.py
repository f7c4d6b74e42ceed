"""Whether the model learns: the losses against right and shifted targets, and the test on them."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from minifast import Callback, DataBunch, Learner, TensorLoader, simple_ann
from minifast.finder import validation
from minifast.finder.learning import Run, ShiftedTargets, learns, run_of, with_unseen
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


def with_gain(run: Run, gain: float, seed: int, noise: float = 0.05, **more) -> Run:
    """The run with samples that were not trained on, whose right targets have a loss lower by ``gain`` from step 60."""
    rng = np.random.default_rng(seed)
    unseen = gain * (np.arange(len(run.losses)) >= 60) + rng.normal(0, noise, len(run.losses))
    return run._replace(unseen=unseen, **more)


def test_samples_that_were_not_trained_on_decide_where_others_may_be_memorized() -> None:
    memorized, clear = comparison(0.2, 20, 1, 0), comparison(0.6, 20, 1, 0)
    assert learns([with_gain(memorized, 0.1, 1)])  # they are clear by themselves
    assert not learns([with_gain(clear, 0, 1)])
    assert learns([with_gain(clear, 0.04, 1)])  # both agree
    assert not learns([with_gain(memorized, 0.04, 1)])


@settings(max_examples=25, deadline=None)
@given(passes=st.floats(1, 50), capacity=st.floats(0, 1), share=st.floats(0, 1), first=st.integers(0, 1000))
def test_whatever_can_be_memorized_is_not_learning(passes, capacity, share, first) -> None:
    gain = share * min(0.03 * max(0.6 * passes - 1, 0), 0.7) * capacity  # passes at step 60
    runs = [with_gain(comparison(gain, passes, capacity, first + i), 0, 7 * (first + i)) for i in range(60)]
    assert np.mean([learns([run]) for run in runs]) <= 0.1


def test_validation_samples_that_repeat_count_once() -> None:
    few, many = (with_gain(comparison(0, 20, 1, 0), 0.1, 3, distinct=distinct) for distinct in (1, 100))
    assert learns([many])
    assert not learns([few])


def test_unseen_samples_are_those_of_the_first_pass_and_then_of_validation() -> None:
    pairs = np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 1.0], [1.0, 1.0]])
    run = run_of(pairs, [0, 0, 1, 1], 2, 2, 40, 30)
    run = with_unseen(run, pairs, np.array([[0.0, 5.0], [0.0, 7.0]]), [0, 0, 1, 1], 6)
    assert run.unseen.tolist() == [2, 6]
    assert run.distinct == 3
    infinite = with_unseen(run, pairs, np.full((2, 2), np.inf), [0, 0, 1, 1], 6)
    assert np.isnan(infinite.unseen).tolist() == [False, True]
    assert with_unseen(run._replace(unseen=None), pairs, None, [0, 0, 1, 1], 6).unseen is None


def sorted_by_class(n: int, bs: int, noise: bool, classes: int = 2, seed: int = 0) -> DataBunch:
    """Data whose validation set is sorted by class, as a folder of images is."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n + 200) % classes
    x = torch.randn(n + 200, 10, generator=generator)
    x[torch.arange(n + 200), y] += 0 if noise else 4
    order = y[n:].argsort(stable=True)
    train = TensorLoader(x[:n], y[:n], bs, shuffle=True, seed=seed, device="cpu")
    valid = TensorLoader(x[n:][order], y[n:][order], 50, device="cpu")
    return DataBunch(train, valid, device="cpu", loss_func=nn.CrossEntropyLoss())


@pytest.mark.parametrize("classes", [2, 10])
def test_a_large_network_learns_from_few_samples_and_not_from_noise(classes) -> None:
    def found(noise: bool, seed: int) -> bool:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, classes))
        learn = Learner(sorted_by_class(100, 16, noise, classes, seed), model, torch.optim.AdamW, silent=True)
        return learn.lr_find().suggestion is not None

    assert sum(found(False, seed) for seed in range(10)) >= 9
    assert sum(found(True, seed) for seed in range(10)) <= 1


@pytest.mark.parametrize("batch_norm", [False, True])
def test_validation_samples_do_not_change_the_curve(batch_norm) -> None:
    def curve(uses_validation: bool) -> list[float]:
        torch.manual_seed(0)
        layers = [nn.Linear(10, 20), nn.BatchNorm1d(20) if batch_norm else nn.ReLU(), nn.Dropout(0.3), nn.Linear(20, 2)]
        learn = Learner(sorted_by_class(100, 20, False), nn.Sequential(*layers), silent=True)
        if not uses_validation:
            learn.data.valid_dl = None
        return learn.lr_find().losses

    assert curve(True) == curve(False)


def test_callbacks_that_change_batches_are_tested_by_training_samples_alone() -> None:
    class Doubles(Callback):
        fit_only = False

        def on_batch_begin(self, last_input):
            return {"last_input": 2 * last_input}

    learn = Learner(sorted_by_class(100, 20, False), simple_ann(10, 2), callbacks=[Doubles()], silent=True)
    learn.data.valid_dl = UnreadableLoader(learn.data.valid_dl)
    assert learn.lr_find().learned is not None


class UnreadableLoader:
    def __init__(self, loader) -> None:
        self.dataset, self.n = loader.dataset, len(loader)

    def __len__(self) -> int:
        return self.n

    def __iter__(self):
        raise AssertionError("read")


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), max_size=8), n=st.integers(1, 9), most=st.integers(1, 20))
def test_slices_hold_each_kept_sample_once_a_pass(sizes, n, most) -> None:
    batches, first = [], 0
    for size in sizes:
        batches.append((torch.arange(first, first + size).float()[:, None], torch.arange(first, first + size)))
        first += size
    learn = SimpleNamespace(
        data=SimpleNamespace(valid_dl=batches), model=nn.Identity(), output_of=lambda inputs: inputs[:, 0]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "MOST_SAMPLES", most)
        slices = validation.ValidationSlices(learn, n)
    assert bool(slices.n_slices) == bool(sizes)
    for _ in range(2):
        seen = [slices.next_pair() for _ in range(slices.n_slices)]
        outputs, targets = ([value for pair in seen for value in pair[i].tolist()] for i in range(2))
        assert outputs == targets
        assert len(set(targets)) == len(targets) <= most
        assert len(targets) >= min(first, (most + 1) // 2)


@pytest.mark.parametrize(
    "batch",
    [
        (["a", "b"], torch.zeros(2)),
        (torch.zeros(2, 3), [torch.zeros(1), torch.zeros(4)]),
        (torch.zeros(3), torch.zeros(2)),
    ],
)
def test_samples_without_rows_cannot_be_mixed(batch) -> None:
    learn = SimpleNamespace(data=SimpleNamespace(valid_dl=[batch]))
    assert validation.ValidationSlices(learn, 2).n_slices == 0
