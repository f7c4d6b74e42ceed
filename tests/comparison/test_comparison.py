"""compare: seeds, table, verdict, plot, early end and invalid arguments."""

from __future__ import annotations

import gc
import itertools
import math
import random
import weakref

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_learner

from minifast import (
    Callback,
    DataBunch,
    Learner,
    MinifastError,
    TensorLoader,
    accuracy,
    compare,
    error_rate,
    one_cycle,
    simple_ann,
)
from minifast.comparison.result import Comparison, Run, permutation_test
from minifast.schedules import linear


def make() -> Learner:
    return Learner(toy_data(), simple_ann(10, 2, 8), metrics=[accuracy])


CONFIGURATIONS = {
    "rate": 1e-2,
    "schedule": one_cycle(1e-2),
    "dict": {"lr": linear(1e-2, 0.0), "mom": 0.8},
    "function": lambda learn, epochs: learn.fit_one_cycle(epochs, 1e-2),
}


def test_each_kind_of_configuration_trains_with_its_schedule() -> None:
    result = compare(make, CONFIGURATIONS, epochs=2, seeds=2, silent=True)
    assert set(result.runs) == set(CONFIGURATIONS)
    lrs = {name: runs[0].lrs for name, runs in result.runs.items()}
    assert lrs["rate"] == [1e-2] * 6
    assert lrs["schedule"] == pytest.approx([one_cycle(1e-2)(i / 6) for i in range(6)])
    assert lrs["dict"] == pytest.approx([1e-2 * (1 - i / 6) for i in range(6)])
    alone = toy_learner()
    alone.fit_one_cycle(2, 1e-2)
    assert lrs["function"] == alone.recorder.lrs


def test_configurations_share_weights_and_data_order_and_seeds_do_not() -> None:
    x = torch.randn(60, 10)
    y = (x.sum(1) > 0).long()
    shared = DataBunch(
        TensorLoader(x, y, 20, shuffle=True, seed=3, device="cpu"), TensorLoader(x, y, 20, device="cpu"), device="cpu"
    )

    def make_shared() -> Learner:
        return Learner(shared, simple_ann(10, 2, 8), loss_func=torch.nn.CrossEntropyLoss())

    same = {"one": 1e-2, "two": 1e-2}
    result = compare(make_shared, same, seeds=[4, 9], silent=True)
    one, two = result.runs["one"], result.runs["two"]
    assert [run.losses for run in one] == [run.losses for run in two]
    assert one[0].losses != one[1].losses
    assert [run.seed for run in one] == [4, 9]


def test_make_learner_may_take_the_seed() -> None:
    seeds = []

    def make_with(seed):
        seeds.append(seed)
        return make()

    compare(make_with, {"a": 1e-2, "b": 1e-3}, seeds=[5, 7], silent=True)
    assert seeds == [5, 5, 7, 7]


def test_make_learner_may_seed_shared_data() -> None:
    data = DataBunch(
        TensorLoader(torch.randn(60, 10), torch.arange(60) % 2, 20, shuffle=True, seed=3, device="cpu"),
        TensorLoader(torch.randn(20, 10), torch.arange(20) % 2, 20, device="cpu"),
        device="cpu",
    )
    seen = []

    def make_with(seed):
        data.train_dl.seed, data.train_dl.epoch = seed, 0
        return Learner(data, simple_ann(10, 2, 8), loss_func=torch.nn.CrossEntropyLoss())

    def look(learn, epochs):
        seen.append((data.train_dl.seed, data.train_dl.epoch))
        learn.fit(epochs, 1e-2)

    compare(make_with, {"a": look, "b": look}, seeds=[5, 7], silent=True)
    assert seen == [(5, 0), (5, 0), (7, 0), (7, 0)]


def test_an_argument_with_a_default_is_not_the_seed() -> None:
    widths = []

    def make_with(width=8):
        widths.append(width)
        return make()

    compare(make_with, {"a": 1e-2}, epochs=1, seeds=[5, 7], silent=True)
    assert widths == [8, 8]


def test_the_metric_is_checked_before_training() -> None:
    trained = []
    with pytest.raises(ValueError, match="`by` must be one of 'valid_loss', 'accuracy', got 'f1'"):
        compare(make, {"a": lambda learn, epochs: trained.append(1)}, by="f1", silent=True)
    assert not trained


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e9])
def test_the_permutation_test_does_not_depend_on_the_scale(scale) -> None:
    rng = random.Random(3)
    d = [scale * rng.gauss(1, 0.1) for _ in range(9)]
    assert permutation_test(d, [0.0] * 9) == 2 / 2**9


def test_the_global_generators_are_restored() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    compare(make, {"a": 1e-2, "b": 1e-3}, seeds=2, silent=True)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def runs(values: list[float], loss: float = 1.0) -> list[Run]:
    return [Run(i, [0.1], [1.0 + i], {"valid_loss": loss, "accuracy": value}, 1.5) for i, value in enumerate(values)]


def test_table_and_verdict() -> None:
    result = Comparison({"low": runs([0.5, 0.6] * 5), "high": runs([0.8, 0.9] * 5)})
    head, low, high = result.rows()
    assert head == ["configuration", "accuracy", "valid_loss", "seconds"]
    assert low == ["low", "0.5500 +/- 0.0527", "1.0000 +/- 0.0000", "1.50"]
    assert high[:2] == ["high", "0.8500 +/- 0.0527"]
    assert result.verdict == (
        "By accuracy, high is first with 0.8500, then low with 0.5500; over 10 seeds the difference is more than noise "
        "(paired permutation test, p = 0.002)."
    )
    text = str(result).splitlines()
    assert text[0].split() == head
    assert text[-1] == result.verdict
    html = result._repr_html_()
    assert html.count("<tr>") == 3
    assert result.verdict in html


def test_the_verdict_for_a_difference_within_noise() -> None:
    rng = random.Random(0)
    a, b = ([0.9 + rng.gauss(0, 0.01) for _ in range(10)] for _ in range(2))
    assert "is no more than noise (paired permutation test, p = 0." in Comparison({"a": runs(a), "b": runs(b)}).verdict


def test_the_verdict_for_few_seeds_diverged_runs_and_the_loss() -> None:
    assert (
        "3 seeds are too few to tell the difference from noise"
        in Comparison({"a": runs([0.9] * 3), "b": runs([0.5] * 3)}).verdict
    )
    lost = Comparison({"a": runs([0.9] * 6), "b": runs([0.5] * 6), "c": runs([math.nan] * 2 + [0.99] * 4)}).verdict
    assert "a is first" in lost
    assert lost.endswith("The loss was NaN or infinite in 2 runs of c.")
    by_loss = Comparison({"a": runs([0.9] * 6, loss=0.5), "b": runs([0.5] * 6, loss=0.2)}, by="valid_loss").verdict
    assert by_loss.startswith("By valid_loss, b is first with 0.2000, then a with 0.5000")
    with pytest.raises(ValueError, match="`by` must be one of 'valid_loss', 'accuracy', got 'f1'"):
        Comparison({"a": runs([1.0])}, by="f1")
    assert Comparison({"a": [], "b": []}).verdict.startswith("There is nothing to compare")


def test_the_permutation_test_is_exact_for_few_pairs_and_close_for_many() -> None:
    rng = random.Random(1)
    for n in (1, 4, 9, 12):
        d = [rng.gauss(0.3, 1) for _ in range(n)]
        sums = [
            abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=n)
        ]
        expected = sum(value >= abs(sum(d)) - 1e-12 for value in sums) / len(sums)
        assert permutation_test(d, [0.0] * n) == pytest.approx(expected)
    d = [rng.gauss(0.3, 1) for _ in range(14)]
    exact = np.abs(np.array(list(itertools.product((1, -1), repeat=14))) @ d) >= abs(sum(d)) - 1e-12
    assert permutation_test(d, [0.0] * 14) == pytest.approx(exact.mean(), abs=0.02)
    assert permutation_test([1.0] * 30, [1.0] * 30) == 1.0


def test_a_diverged_run_is_counted_and_the_others_continue() -> None:
    class MakesNaN(Callback):
        def on_loss_begin(self, last_output, train):
            return {"last_output": last_output * float("nan")} if train else None

    configurations = {"good": 1e-2, "bad": lambda learn, epochs: learn.fit(epochs, 1e-2, callbacks=[MakesNaN()])}
    result = compare(make, configurations, epochs=1, seeds=2, silent=True)
    assert str(result).count("(2 diverged)") == 2
    assert all(map(math.isnan, result.values("bad", "accuracy")))
    assert "The loss was NaN or infinite in 2 runs of bad." in result.verdict


@pytest.mark.filterwarnings("ignore:The validation loss is nan:UserWarning")
def test_a_validation_loss_of_nan_counts_as_diverged_and_other_seeds_are_shown() -> None:
    class MakesNaN(Callback):
        def on_loss_begin(self, last_output, train):
            return None if train else {"last_output": last_output * float("nan")}

    count = itertools.count()

    def sometimes(learn, epochs):
        learn.fit(epochs, 1e-2, callbacks=[MakesNaN()] if next(count) == 1 else [])

    result = compare(make, {"good": 1e-2, "bad": sometimes}, epochs=1, seeds=3, silent=True)
    assert str(result).count("(1 diverged)") == 2
    assert "nan" not in str(result)
    assert "NaN or infinite in 1 run of bad." in result.verdict


def test_numbers_as_names_and_equal_configurations() -> None:
    result = compare(make, {1e-2: 1e-2, 1e-3: 1e-2}, epochs=1, seeds=2, silent=True)
    assert list(result.runs) == ["0.01", "0.001"]
    assert result.verdict.startswith("By accuracy, 0.01 and 0.001 are equal with 0.")


def test_the_verdict_for_seeds_that_change_nothing() -> None:
    def make_one() -> Learner:
        torch.manual_seed(0)
        return make()

    result = compare(make_one, {"a": 1e-1, "b": 1e-4}, epochs=1, seeds=7, silent=True)
    assert result.verdict.startswith("All seeds gave the same run, so the noise is unknown")


def test_a_plot_without_runs_is_an_error() -> None:
    with pytest.raises(MinifastError, match="no seed was trained with every configuration"):
        Comparison({"a": [], "b": []}).plot()


def test_ctrl_c_returns_the_finished_seeds(capsys) -> None:
    count = itertools.count()

    def stops(learn, epochs):
        if next(count) == 2:
            raise KeyboardInterrupt
        learn.fit(epochs, 1e-2)

    result = compare(make, {"a": 1e-2, "b": stops}, epochs=1, seeds=5, silent=True)
    assert {name: len(runs) for name, runs in result.runs.items()} == {"a": 2, "b": 2}
    assert isinstance(result.ended_by, KeyboardInterrupt)
    assert capsys.readouterr().out == ""
    count = itertools.count()
    compare(make, {"a": 1e-2, "b": stops}, epochs=1, seeds=5)
    assert "Stopped after 5 of 10 runs." in capsys.readouterr().out


def test_an_error_is_raised_in_the_first_seed_and_a_warning_later() -> None:
    count = itertools.count()

    def breaks(learn, epochs):
        if next(count) == at:
            raise RuntimeError("broken")
        learn.fit(epochs, 1e-2)

    at = 0
    with pytest.raises(RuntimeError, match="broken") as caught:
        compare(make, {"a": 1e-2, "b": breaks}, epochs=1, seeds=3, silent=True)
    if hasattr(caught.value, "__notes__"):  # from Python 3.11 on
        assert caught.value.__notes__[-1] == "The comparison stopped in the configuration b with seed 0."
    count, at = itertools.count(), 2
    with pytest.warns(UserWarning, match="stopped in the configuration b with seed 2: RuntimeError: broken"):
        result = compare(make, {"a": 1e-2, "b": breaks}, epochs=1, seeds=3, silent=True)
    assert {name: len(runs) for name, runs in result.runs.items()} == {"a": 2, "b": 2}
    assert isinstance(result.ended_by, RuntimeError)


def test_all_configurations_are_checked_before_training() -> None:
    def never(learn, epochs):
        raise AssertionError("trained")

    for bad, error, message in (
        ({"lr": lambda p: -1.0}, ValueError, "lr of the configuration b at 0 of the run must be at least 0, got -1"),
        (one_cycle, TypeError, "lr of the configuration b is one_cycle, which is not a function of progress alone"),
        ({"rate": 0.1}, ValueError, "The configuration b must be a dict with lr, and optionally mom and wd, got rate"),
        (True, TypeError, "The configuration b must be a learning rate, .*, got True"),
    ):
        with pytest.raises(error, match=message):
            compare(make, {"a": never, "b": bad}, silent=True)


def test_a_function_may_have_a_default_for_epochs() -> None:
    def train(learn, epochs=7):
        learn.fit(epochs, 1e-2)

    result = compare(make, {"a": train}, epochs=2, seeds=1, silent=True)
    assert len(result.runs["a"][0].lrs) == 6


def test_names_are_escaped_in_html_and_one_seed_is_singular() -> None:
    result = compare(make, {"<b>": 1e-1, "b": 1e-6}, epochs=2, seeds=1, silent=True)
    assert "&lt;b&gt;" in result._repr_html_()
    assert "1 seed is too few" in result.verdict


def test_an_error_rate_decides_if_it_is_the_only_metric() -> None:
    def make_one() -> Learner:
        return Learner(toy_data(), simple_ann(10, 2, 8), metrics=[error_rate])

    result = compare(make_one, {"a": 1e-2, "b": 1e-7}, epochs=2, seeds=1, silent=True)
    assert result.by == "error_rate"
    assert result.verdict.startswith("By error_rate, a is first")


def test_learners_and_their_data_are_freed() -> None:
    gc.freeze()  # the collection is of this test's objects only, and takes no time
    alive = []

    def make_one() -> Learner:
        learn = make()
        alive.append(weakref.ref(learn.data.train_dl))
        return learn

    compare(make_one, {"a": 1e-2, "b": 1e-3}, epochs=1, seeds=3, silent=True)
    gc.collect()
    assert not any(reference() for reference in alive)


def test_the_plot_shows_every_configuration() -> None:
    result = compare(make, {"a": 1e-2, "b": one_cycle(1e-2)}, epochs=2, seeds=2, silent=True)
    rates, losses = result.plot(return_fig=True).axes
    assert [line.get_label() for line in rates.lines] == ["a", "b"]
    assert list(rates.lines[1].get_ydata()) == result.runs["b"][0].lrs
    mean = np.mean([run.losses for run in result.runs["a"]], axis=0)
    assert list(losses.lines[0].get_ydata()) == pytest.approx(list(mean))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"make_learner": 3}, TypeError, "`make_learner` must be callable, got 3"),
        ({"make_learner": lambda: 3}, TypeError, "`make_learner` must return a Learner, got 3"),
        ({"configurations": {"a": "x"}}, TypeError, "a must be a learning rate, a schedule, .*, got 'x'"),
        ({"configurations": {"a": lambda: 3}}, TypeError, "The configuration a must take"),
        ({"seeds": 0}, ValueError, "`seeds` must be at least 1, got 0"),
        ({"seeds": [1, 1]}, ValueError, r"`seeds` must be a number of seeds or distinct seeds, .*, got \[1, 1\]"),
        ({"configurations": {}}, TypeError, r"`configurations` must be a dict, .*, got \{\}"),
        ({"configurations": [1e-2]}, TypeError, r"`configurations` must be a dict, .*, got \[0.01\]"),
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1, got 0"),
    ],
)
def test_invalid_arguments(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        compare(**({"make_learner": make, "configurations": {"a": 1e-2}, "silent": True} | arguments))


def test_a_trained_learner_is_an_error() -> None:
    learn = make()
    with pytest.raises(MinifastError, match="returned a trained learner; it must make a new one"):
        compare(lambda: learn, {"a": 1e-2, "b": 1e-3}, epochs=1, silent=True)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (lambda learn, epochs: None, "trained nothing; it must fit the learner"),
        (lambda learn, epochs: learn.fit(epochs, callbacks=[NoValidation()]), "ended without validation"),
    ],
)
def test_a_configuration_without_a_result_is_an_error(configuration, message) -> None:
    with pytest.raises(MinifastError, match=message) as caught:
        compare(make, {"a": configuration}, silent=True)
    if hasattr(caught.value, "__notes__"):  # from Python 3.11 on
        assert caught.value.__notes__[-1] == "The comparison stopped in the configuration a with seed 0."


class NoValidation(Callback):
    def on_train_begin(self):
        return {"skip_validate": True}


@pytest.mark.parametrize(
    ("name", "lower"), [("mse", True), ("exp_rmspe", True), ("mean_squared_error", True), ("r2_score", False)]
)
def test_the_direction_of_better_depends_on_the_metric(name, lower) -> None:
    scores = {"a": 1.0, "b": 0.5}
    result = Comparison(
        {key: [Run(0, [], [], {"valid_loss": 1.0, name: value}, 1.0)] for key, value in scores.items()}, name
    )
    assert result.verdict.startswith(f"By {name}, {'b' if lower else 'a'} is first")


def test_the_old_name_of_the_configurations_warns() -> None:
    with pytest.warns(DeprecationWarning, match="`recipes` is now called `configurations`; .* version 0.3"):
        result = compare(make, recipes={"a": 1e-2}, epochs=1, seeds=1, silent=True)
    assert list(result.runs) == ["a"]
    with pytest.raises(TypeError, match="got `recipes` and `configurations`, two names of one argument"):
        compare(make, configurations={"a": 1e-2}, recipes={"a": 1e-2})


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_metric_decides_which_direction_is_better(higher_is_better) -> None:
    def distance(output, target):
        return accuracy(output, target)

    distance.higher_is_better = higher_is_better

    def make_learner() -> Learner:
        return Learner(toy_data(), simple_ann(10, 2, 8), metrics=[distance])

    result = compare(make_learner, {"low": 1e-9, "high": 5e-2}, epochs=2, seeds=2, by="distance", silent=True)
    best = (max if higher_is_better else min)(result.runs, key=lambda name: np.mean(result.values(name, "distance")))
    assert result.verdict.startswith(f"By distance, {best} is first")
