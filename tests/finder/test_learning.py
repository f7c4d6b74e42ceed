"""Whether the model learns: the losses against right and shifted targets, and the test on them."""

from __future__ import annotations

from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import slow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from minifast import Callback, DataBunch, Learner, TensorLoader, accuracy, simple_ann
from minifast.finder import validation
from minifast.finder.learning import (
    LEAST_PASSES,
    LEAST_UNSEEN,
    Run,
    ShiftedTargets,
    learned_step,
    lowest_unseen,
    run_of,
    with_unseen,
)
from minifast.finder.rules import Rules, combine_rules
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
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 9), shifts=st.integers(1, 3))
def test_both_losses_are_those_of_the_loss_function(loss_func, kind, sizes, seed, shifts) -> None:
    torch.manual_seed(seed)
    _, make_targets, make_outputs = kind
    batches = [(make_outputs(n), make_targets(n)) for n in sizes]
    compared = ShiftedTargets(loss_func, shifts)
    for batch in batches:
        compared.add(*batch)
    expected = []
    for x, y in batches:
        others = [float(loss_func(x, y.roll(i, 0))) for i in range(1, shifts + 1) if i == 1 or i < len(y)]
        expected.append([float(loss_func(x, y)), sum(others) / len(others)])
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
    assert learned_step([comparison(0.2, 1, 1, 0)])
    assert not learned_step([comparison(0.2, 20, 1, 0)])
    assert learned_step([comparison(0.2, 20, 0.1, 0)])
    assert learned_step([comparison(0.6, 20, 1, 0)])


def test_chance_is_not_learning_and_what_a_model_knew_before_neither() -> None:
    runs = [comparison(0, 1, 1, seed) for seed in range(300)]
    trained = [run._replace(losses=run.losses - 0.3) for run in runs]
    assert np.mean([learned_step([run]) is not None for run in runs]) <= 0.02
    assert np.mean([learned_step([run]) is not None for run in trained]) <= 0.02


def test_points_that_are_not_finite_are_left_out() -> None:
    run = comparison(0.3, 1, 1, 0)
    losses = run.losses.copy()
    losses[[5, 70, 99]] = np.nan, np.inf, np.nan
    assert learned_step([run._replace(losses=losses)])
    assert not learned_step([run._replace(losses=np.full(100, np.nan))])


SGD, ADAM = partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam


@pytest.mark.parametrize(
    ("opt_func", "problem"),
    [
        *((SGD, "many classes"), (ADAM, "unbalanced"), (SGD, "far from 0")),
        *slow((ADAM, "many classes"), (SGD, "unbalanced"), (ADAM, "far from 0")),
    ],
)
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
    assert learned_step([with_gain(memorized, 0.1, 1)])  # they are clear by themselves
    assert not learned_step([with_gain(clear, 0, 1)])
    assert learned_step([with_gain(clear, 0.04, 1)])  # both agree
    assert not learned_step([with_gain(memorized, 0.04, 1)])


@settings(max_examples=25, deadline=None)
@given(passes=st.floats(1, 50), capacity=st.floats(0, 1), share=st.floats(0, 1), first=st.integers(0, 1000))
def test_whatever_can_be_memorized_is_not_learning(passes, capacity, share, first) -> None:
    gain = share * min(0.03 * max(0.6 * passes - 1, 0), 0.7) * capacity  # passes at step 60
    runs = [with_gain(comparison(gain, passes, capacity, first + i), 0, 7 * (first + i)) for i in range(60)]
    assert np.mean([learned_step([run]) is not None for run in runs]) <= 0.1


def test_validation_samples_that_repeat_count_once() -> None:
    few, many = (with_gain(comparison(0, 20, 1, 0), 0.1, 3, distinct=distinct) for distinct in (1, 100))
    assert learned_step([many])
    assert not learned_step([few])


def test_unseen_samples_are_those_of_the_first_pass_and_then_of_validation() -> None:
    pairs = np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 1.0], [1.0, 1.0]])
    run = run_of(pairs, [0, 0, 1, 1], 2, 2, 40, 30)
    run = with_unseen(run, pairs, np.array([[0.0, 5.0], [0.0, 7.0]]), [0, 0, 1, 1], 6, 120)
    assert run.unseen.tolist() == [2, 6]
    assert (run.distinct, run.n_unseen) == (3, 120)
    assert run.unseen_losses.tolist() == [1, 0]
    infinite = with_unseen(run, pairs, np.full((2, 2), np.inf), [0, 0, 1, 1], 6, 120)
    assert np.isnan(infinite.unseen).tolist() == [False, True]
    assert with_unseen(run._replace(unseen=None), pairs, None, [0, 0, 1, 1], 6, 120).unseen is None


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


@pytest.mark.parametrize(("classes", "n_seeds"), [(10, 1), *slow((2, 10), (10, 10))])
def test_a_large_network_learns_from_few_samples_and_not_from_noise(classes, n_seeds) -> None:
    def found(noise: bool, seed: int) -> bool:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, classes))
        learn = Learner(sorted_by_class(100, 16, noise, classes, seed), model, torch.optim.AdamW, silent=True)
        return learn.lr_find().suggestion is not None

    assert sum(found(False, seed) for seed in range(n_seeds)) >= 0.9 * n_seeds
    assert sum(found(True, seed) for seed in range(n_seeds)) <= 0.1 * n_seeds


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
@given(sizes=st.lists(st.integers(1, 7), max_size=8), n=st.integers(1, 9), most=st.integers(16, 40))
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
    kept = round(slices.n_slices * n)
    assert kept == 0 if first < 8 else (most + 1) // 2 <= kept <= most or kept == first <= most
    seen = [slices.next_pair(learn) for _ in range(2 * kept)] if kept else []
    assert {len(targets) for _, targets in seen} <= {min(n, kept)}
    assert all(output.tolist() == target.tolist() for output, target in seen)
    counts = Counter(target for _, targets in seen for target in targets.tolist())
    assert len(counts) == kept
    assert set(counts.values()) <= {2 * min(n, kept)}


@pytest.mark.parametrize(
    "batch",
    [
        (["a", "b"], torch.zeros(2)),
        (torch.zeros(2, 3), [torch.zeros(1), torch.zeros(4)]),
        (torch.zeros(3), torch.zeros(2)),
    ],
)
def test_samples_without_rows_cannot_be_mixed(batch) -> None:
    learn = SimpleNamespace(data=SimpleNamespace(valid_dl=9 * [batch]))
    assert validation.ValidationSlices(learn, 2).n_slices == 0


@pytest.mark.parametrize("n_valid", [8, 33, *slow(31, 32, 64, 65, 97)])
def test_the_number_of_validation_samples_does_not_hide_that_a_model_learned_step(n_valid) -> None:
    data = sorted_by_class(100, 32, False)
    x, y = data.valid_dl.dataset[:]
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n_valid]
    data.valid_dl = TensorLoader(x[rows], y[rows], 50, device="cpu")
    torch.manual_seed(0)
    learn = Learner(data, simple_ann(10, 2), silent=True)
    assert learn.lr_find().learned


def few(x, y):
    return x[:3], y[:3]


def one_class(x, y):
    return x[y == 0], y[y == 0]


@pytest.mark.parametrize("choose", [few, one_class])
def test_validation_samples_that_tell_nothing_leave_the_decision_to_the_training_samples(choose) -> None:
    data = sorted_by_class(100, 20, False)
    data.valid_dl = TensorLoader(*choose(*data.valid_dl.dataset[:]), 50, device="cpu")
    torch.manual_seed(0)
    without = sorted_by_class(100, 20, False)
    without.valid_dl = None
    learners = []
    for bunch in (data, without):
        torch.manual_seed(0)
        learners.append(Learner(bunch, simple_ann(10, 2), silent=True))
    assert learners[0].lr_find().suggestion == learners[1].lr_find().suggestion is not None


class Remembers(nn.Module):
    """Its state must have the size of the batch, and changes in each call."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.layer, self.state, self.fails = nn.Linear(10, 2), None, fails

    def forward(self, x):
        if self.fails and not self.training:
            raise RuntimeError("only in training")
        output = self.layer(x) + (0 if self.state is None else 0.1 * self.state)
        self.state = output.detach()
        return output


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_with_a_state_or_that_fails_on_validation_samples_has_the_same_curve(fails) -> None:
    def curve(valid: bool) -> list[float]:
        torch.manual_seed(0)
        learn = Learner(sorted_by_class(100, 20, False), Remembers(fails), silent=True)
        if not valid:
            learn.data.valid_dl = None
        return learn.lr_find().losses

    assert curve(True) == curve(False)


def test_a_large_validation_set_is_read_in_part(monkeypatch) -> None:
    class Counted(TensorDataset):
        def __getitem__(self, index):
            seen.add(index)
            return super().__getitem__(index)

    seen: set[int] = set()
    monkeypatch.setattr(validation, "MOST_SAMPLES", 50)
    x, y = sorted_by_class(100, 20, False).train_ds[:]
    valid = Counted(torch.randn(2000, 10), torch.randint(2, (2000,)))
    data = DataBunch(DataLoader(TensorDataset(x, y), 20, shuffle=True), DataLoader(valid, 30), device="cpu")
    Learner(data, simple_ann(10, 2), silent=True).lr_find(num_it=20)
    assert len(seen) == 50
    assert {min(seen), max(seen)} == {0, 1999}


def memorized(n_train: int, n_valid: int, wrong: float = 0.4) -> Learner:
    """A large network, and few samples of which some have a wrong class."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_train + n_valid, 10, generator=generator)
    y = (x[:, 0] > 0).long()
    y = torch.where(torch.rand(len(y), generator=generator) < wrong, 1 - y, y)
    train = TensorLoader(x[:n_train], y[:n_train], 32, shuffle=True, seed=0, device="cpu")
    valid = TensorLoader(x[n_train:], y[n_train:], 500, device="cpu")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 2))
    data = DataBunch(train, valid, device="cpu", loss_func=nn.CrossEntropyLoss())
    return Learner(data, model, torch.optim.AdamW, metrics=[accuracy], silent=True)


def test_where_samples_are_memorized_the_validation_loss_lowers_the_suggestion() -> None:
    learn = memorized(128, 1000, wrong=0.3)
    result = learn.lr_find()
    plain = combine_rules(Rules(**result.rules))
    assert result.suggestion == max(result.valid_minimum, plain) / 5 < plain
    assert "the validation loss rises" in str(result)

    def trained(lr: float) -> float:
        fresh = memorized(128, 1000, wrong=0.3)
        return float(fresh.fit_one_cycle(40, lr).recorder.metrics[-1][0])

    assert trained(result.suggestion) > trained(plain)


@pytest.mark.parametrize(("n_train", "n_valid"), [(5000, 1000), (128, LEAST_UNSEEN - 1)])
def test_after_few_passes_or_with_few_validation_samples_the_rules_alone_decide(n_train, n_valid) -> None:
    result = memorized(n_train, n_valid, wrong=0.1).lr_find()
    assert result.valid_minimum is None
    assert result.suggestion == combine_rules(Rules(**result.rules))


@settings(max_examples=60, deadline=None)
@given(
    mean=st.floats(1e-5, 1.0),
    ratio=st.floats(0.01, 100),
    lowest=st.none() | st.floats(1e-7, 10.0),
)
def test_the_validation_loss_never_raises_a_suggestion_and_leaves_at_least_a_fifth(mean, ratio, lowest) -> None:
    rules = Rules(mean * ratio, mean, mean, mean)
    plain, limited = combine_rules(rules), combine_rules(rules, lowest)
    assert plain / 5 <= limited * (1 + 1e-12)
    assert limited <= plain
    if lowest is not None and plain < lowest < 5 * plain:
        assert limited == lowest / 5


@settings(max_examples=60, deadline=None)
@given(
    turn=st.integers(30, 90),
    passes=st.floats(1.0, 20.0),
    scale=st.floats(1e-3, 1e3),
    spread=st.floats(1.0, 10.0),
    level=st.floats(-100, 100),
    n_runs=st.integers(1, 3),
    n_infinite=st.integers(0, 10),
)
def test_the_lowest_validation_loss_counts_where_samples_are_memorized(
    turn, passes, scale, spread, level, n_runs, n_infinite
):
    steps, lrs = np.arange(110), np.logspace(-5, 1, 110)
    seen = scale * (200.0 - steps)
    seen[110 - n_infinite :] = np.inf
    # Other samples may have a loss of another height; in the first pass, the losses are those of training batches.
    times = steps / 110 * passes
    unseen = np.where(times > 1, scale * (spread * np.abs(steps - turn) + level), scale * 10.0)
    run = Run(seen, seen, times, 1.0, unseen_losses=unseen, n_unseen=LEAST_UNSEEN)
    found = lowest_unseen([run] * n_runs, lrs.tolist())
    known = np.flatnonzero((times > 1) & np.isfinite(seen))
    if len(known) < 18 or times[known[-5]] < LEAST_PASSES:
        assert found is None
    elif found is not None:
        assert found == pytest.approx(lrs[np.clip(turn, known[4], known[-5])])
    falls_too = Run(seen, seen, times, 1.0, unseen_losses=spread * seen + level, n_unseen=LEAST_UNSEEN)
    assert lowest_unseen([falls_too], lrs.tolist()) is None
    assert lowest_unseen([*[run] * n_runs, run._replace(unseen_losses=None)], lrs.tolist()) is None
    assert lowest_unseen([run._replace(n_unseen=LEAST_UNSEEN - 1)], lrs.tolist()) is None


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_what_is_learned_and_not_memorized_keeps_its_suggestion(scale) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(832, 10, generator=generator), torch.randn(10, generator=generator)
    x[320:] *= scale  # validation samples of a higher loss
    y = (x @ weights / 3 + 0.1 * torch.randn(832, generator=generator))[:, None]
    train = TensorLoader(x[:320], y[:320], 32, shuffle=True, seed=0, device="cpu")
    data = DataBunch(train, TensorLoader(x[320:], y[320:], 512, device="cpu"), device="cpu", loss_func=nn.MSELoss())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    result = Learner(data, model, torch.optim.Adam, silent=True).lr_find()
    assert result.valid_minimum is None
    assert result.suggestion == combine_rules(Rules(**result.rules))


def test_the_step_where_learning_begins_is_found() -> None:
    assert all(55 <= learned_step([comparison(0.6, 1, 1, seed)]) <= 75 for seed in range(20))  # the gain begins at 60


def test_noise_before_the_model_learns_gives_no_learning_rate() -> None:
    """Small batches of a regression: at the lowest learning rates, the losses go up and down by chance."""
    found = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(600, 10, generator=generator)
        y = (x[:, 0] + x[:, 1] + 3 * torch.randn(600, generator=generator))[:, None]
        train = TensorLoader(x[:500], y[:500], 8, shuffle=True, seed=seed, device="cpu")
        valid = TensorLoader(x[500:], y[500:], 100, device="cpu")
        torch.manual_seed(seed)
        data = DataBunch(train, valid, device="cpu", loss_func=nn.MSELoss())
        result = Learner(data, nn.Linear(10, 1), partial(torch.optim.SGD, momentum=0.9), silent=True).lr_find()
        if result.suggestion is not None:
            found.append(result.rules["minimum"])
            assert result.rules["minimum"] >= result.learned_from / 10 / 1.4
            assert result.suggestion >= result.learned_from / 100
    assert len(found) >= 3
