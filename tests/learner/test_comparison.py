"""compare: the same seeds for each recipe, what the table and the sentence say, and how it ends early."""

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
from minifast.comparison import Comparison, Run, permutation_test
from minifast.schedules import linear


def make() -> Learner:
    return Learner(toy_data(), simple_ann(10, 2, 8), metrics=[accuracy])


RECIPES = {
    "rate": 1e-2,
    "schedule": one_cycle(1e-2),
    "dict": {"lr": linear(1e-2, 0.0), "mom": 0.8},
    "function": lambda learn, epochs: learn.fit_one_cycle(epochs, 1e-2),
}


def test_each_recipe_trains_as_it_says() -> None:
    found = compare(make, RECIPES, epochs=2, seeds=2, silent=True)
    assert set(found.runs) == set(RECIPES)
    lrs = {name: each[0].lrs for name, each in found.runs.items()}
    assert lrs["rate"] == [1e-2] * 6
    assert lrs["schedule"] == pytest.approx([one_cycle(1e-2)(i / 6) for i in range(6)])
    assert lrs["dict"] == pytest.approx([1e-2 * (1 - i / 6) for i in range(6)])
    alone = toy_learner()
    alone.fit_one_cycle(2, 1e-2)
    assert lrs["function"] == alone.recorder.lrs


def test_recipes_begin_with_the_same_weights_and_order_and_seeds_with_others() -> None:
    x = torch.randn(60, 10)
    y = (x.sum(1) > 0).long()
    shared = DataBunch(
        TensorLoader(x, y, 20, shuffle=True, seed=3, device="cpu"), TensorLoader(x, y, 20, device="cpu"), device="cpu"
    )

    def make_shared() -> Learner:
        return Learner(shared, simple_ann(10, 2, 8), loss_func=torch.nn.CrossEntropyLoss())

    same = {"one": 1e-2, "two": 1e-2}
    found = compare(make_shared, same, seeds=[4, 9], silent=True)
    one, two = found.runs["one"], found.runs["two"]
    assert [run.losses for run in one] == [run.losses for run in two]
    assert one[0].losses != one[1].losses
    assert [run.seed for run in one] == [4, 9]


def test_a_maker_may_take_the_seed() -> None:
    seeds = []

    def make_with(seed):
        seeds.append(seed)
        return make()

    compare(make_with, {"a": 1e-2, "b": 1e-3}, seeds=[5, 7], silent=True)
    assert seeds == [5, 5, 7, 7]


def test_a_seed_that_the_maker_gives_to_shared_data_counts() -> None:
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


def test_an_argument_with_a_default_is_the_makers_own() -> None:
    widths = []

    def make_with(width=8):
        widths.append(width)
        return make()

    compare(make_with, {"a": 1e-2}, epochs=1, seeds=[5, 7], silent=True)
    assert widths == [8, 8]


def test_the_measure_is_checked_before_anything_is_trained() -> None:
    trained = []
    with pytest.raises(ValueError, match="`by` must be one of 'valid_loss', 'accuracy', got 'f1'"):
        compare(make, {"a": lambda learn, epochs: trained.append(1)}, by="f1", silent=True)
    assert not trained


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e9])
def test_the_permutation_test_does_not_depend_on_the_scale(scale) -> None:
    rng = random.Random(3)
    d = [scale * rng.gauss(1, 0.1) for _ in range(9)]
    assert permutation_test(d, [0.0] * 9) == 2 / 2**9


def test_the_global_generators_are_as_before() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    compare(make, {"a": 1e-2, "b": 1e-3}, seeds=2, silent=True)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def runs(values: list[float], loss: float = 1.0) -> list[Run]:
    return [Run(i, [0.1], [1.0 + i], {"valid_loss": loss, "accuracy": value}, 1.5) for i, value in enumerate(values)]


def test_table_and_sentence() -> None:
    found = Comparison({"low": runs([0.5, 0.6] * 5), "high": runs([0.8, 0.9] * 5)})
    head, low, high = found.rows()
    assert head == ["recipe", "accuracy", "valid_loss", "seconds"]
    assert low == ["low", "0.5500 ± 0.0527", "1.0000 ± 0.0000", "1.50"]
    assert high[:2] == ["high", "0.8500 ± 0.0527"]
    assert found.verdict == (
        "By accuracy, high is first with 0.8500, then low with 0.5500; over 10 seeds the difference is more than noise "
        "(paired permutation test, p = 0.002)."
    )
    text = str(found).splitlines()
    assert text[0].split() == head
    assert text[-1] == found.verdict
    html = found._repr_html_()
    assert html.count("<tr>") == 3
    assert found.verdict in html


def test_a_difference_that_is_noise_is_called_so() -> None:
    rng = random.Random(0)
    a, b = ([0.9 + rng.gauss(0, 0.01) for _ in range(10)] for _ in range(2))
    assert "is no more than noise (paired permutation test, p = 0." in Comparison({"a": runs(a), "b": runs(b)}).verdict


def test_few_seeds_lost_runs_and_other_measures() -> None:
    assert "3 seeds are too few to tell" in Comparison({"a": runs([0.9] * 3), "b": runs([0.5] * 3)}).verdict
    lost = Comparison({"a": runs([0.9] * 6), "b": runs([0.5] * 6), "c": runs([math.nan] * 2 + [0.99] * 4)}).verdict
    assert "a is first" in lost
    assert lost.endswith("The loss was NaN or infinite in 2 runs of c.")
    by_loss = Comparison({"a": runs([0.9] * 6, loss=0.5), "b": runs([0.5] * 6, loss=0.2)}, by="valid_loss").verdict
    assert by_loss.startswith("By valid_loss, b is first with 0.2000, then a with 0.5000")
    with pytest.raises(ValueError, match="`by` must be one of 'valid_loss', 'accuracy', got 'f1'"):
        Comparison({"a": runs([1.0])}, by="f1")
    assert Comparison({"a": [], "b": []}).verdict.startswith("Nothing to compare")


def test_the_permutation_test_is_exact_for_few_pairs_and_close_for_many() -> None:
    rng = random.Random(1)
    for n in (1, 4, 9, 12):
        d = [rng.gauss(0.3, 1) for _ in range(n)]
        by_hand = [
            abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=n)
        ]
        expected = sum(one >= abs(sum(d)) - 1e-12 for one in by_hand) / len(by_hand)
        assert permutation_test(d, [0.0] * n) == pytest.approx(expected)
    d = [rng.gauss(0.3, 1) for _ in range(14)]
    exact = np.abs(np.array(list(itertools.product((1, -1), repeat=14))) @ d) >= abs(sum(d)) - 1e-12
    assert permutation_test(d, [0.0] * 14) == pytest.approx(exact.mean(), abs=0.02)
    assert permutation_test([1.0] * 30, [1.0] * 30) == 1.0


def test_a_run_whose_loss_is_lost_counts_as_lost_and_the_others_go_on() -> None:
    class Spoils(Callback):
        def on_loss_begin(self, last_output, train):
            return {"last_output": last_output * float("nan")} if train else None

    recipes = {"good": 1e-2, "bad": lambda learn, epochs: learn.fit(epochs, 1e-2, callbacks=[Spoils()])}
    found = compare(make, recipes, epochs=1, seeds=2, silent=True)
    assert str(found).count("(2 lost)") == 2
    assert all(map(math.isnan, found.values("bad", "accuracy")))
    assert "The loss was NaN or infinite in 2 runs of bad." in found.verdict


def test_a_validation_loss_that_is_lost_counts_too_and_the_other_seeds_are_shown() -> None:
    class Spoils(Callback):
        def on_loss_begin(self, last_output, train):
            return None if train else {"last_output": last_output * float("nan")}

    count = itertools.count()

    def sometimes(learn, epochs):
        learn.fit(epochs, 1e-2, callbacks=[Spoils()] if next(count) == 1 else [])

    found = compare(make, {"good": 1e-2, "bad": sometimes}, epochs=1, seeds=3, silent=True)
    assert str(found).count("(1 lost)") == 2
    assert "nan" not in str(found)
    assert "NaN or infinite in 1 run of bad." in found.verdict


def test_names_that_are_numbers_and_recipes_that_are_equal() -> None:
    found = compare(make, {1e-2: 1e-2, 1e-3: 1e-2}, epochs=1, seeds=2, silent=True)
    assert list(found.runs) == ["0.01", "0.001"]
    assert found.verdict.startswith("By accuracy, 0.01 and 0.001 are equal with 0.")


def test_seeds_that_change_nothing_are_called_so() -> None:
    def make_one() -> Learner:
        torch.manual_seed(0)
        return make()

    found = compare(make_one, {"a": 1e-1, "b": 1e-4}, epochs=1, seeds=7, silent=True)
    assert found.verdict.startswith("Every seed gave the same run, so nothing can be told from noise")


def test_nothing_is_drawn_of_no_runs() -> None:
    with pytest.raises(MinifastError, match="No seed was trained with every recipe"):
        Comparison({"a": [], "b": []}).plot()


def test_ctrl_c_returns_the_pairs_that_are_done(capsys) -> None:
    count = itertools.count()

    def stops(learn, epochs):
        if next(count) == 2:
            raise KeyboardInterrupt
        learn.fit(epochs, 1e-2)

    found = compare(make, {"a": 1e-2, "b": stops}, epochs=1, seeds=5, silent=True)
    assert {name: len(each) for name, each in found.runs.items()} == {"a": 2, "b": 2}
    assert isinstance(found.ended_by, KeyboardInterrupt)
    assert capsys.readouterr().out == ""
    count = itertools.count()
    compare(make, {"a": 1e-2, "b": stops}, epochs=1, seeds=5)
    assert "Stopped after 5 of 10 runs." in capsys.readouterr().out


def test_an_error_in_the_first_seed_names_the_recipe_and_a_later_one_keeps_what_is_done() -> None:
    count = itertools.count()

    def breaks(learn, epochs):
        if next(count) == at:
            raise RuntimeError("broken")
        learn.fit(epochs, 1e-2)

    at = 0
    with pytest.raises(RuntimeError, match="broken") as caught:
        compare(make, {"a": 1e-2, "b": breaks}, epochs=1, seeds=3, silent=True)
    if hasattr(caught.value, "__notes__"):  # from Python 3.11 on
        assert caught.value.__notes__[-1] == "This was the recipe b with seed 0."
    count, at = itertools.count(), 2
    with pytest.warns(UserWarning, match="ended in the recipe b with seed 2: RuntimeError: broken"):
        found = compare(make, {"a": 1e-2, "b": breaks}, epochs=1, seeds=3, silent=True)
    assert {name: len(each) for name, each in found.runs.items()} == {"a": 2, "b": 2}
    assert isinstance(found.ended_by, RuntimeError)


def test_nothing_is_trained_where_a_later_recipe_cannot_be() -> None:
    def never(learn, epochs):
        raise AssertionError("trained")

    for bad, error, message in (
        ({"lr": lambda p: -1.0}, ValueError, "lr of the recipe b at 0 of the run must be at least 0, got -1"),
        (one_cycle, TypeError, "lr of the recipe b is one_cycle, which is not a function of progress alone"),
        ({"rate": 0.1}, ValueError, "The recipe b has rate; a dict has lr"),
        (True, TypeError, "The recipe b is True; give a rate"),
    ):
        with pytest.raises(error, match=message):
            compare(make, {"a": never, "b": bad}, silent=True)


def test_a_function_with_a_default_for_its_epochs_trains() -> None:
    def train(learn, epochs=7):
        learn.fit(epochs, 1e-2)

    found = compare(make, {"a": train}, epochs=2, seeds=1, silent=True)
    assert len(found.runs["a"][0].lrs) == 6


def test_names_are_shown_as_they_are_and_one_seed_is_one() -> None:
    found = compare(make, {"<b>": 1e-1, "b": 1e-6}, epochs=2, seeds=1, silent=True)
    assert "&lt;b&gt;" in found._repr_html_()
    assert "1 seed is too few" in found.verdict


def test_an_error_rate_is_what_is_judged_by_where_it_is_the_only_metric() -> None:
    def make_one() -> Learner:
        return Learner(toy_data(), simple_ann(10, 2, 8), metrics=[error_rate])

    found = compare(make_one, {"a": 1e-2, "b": 1e-7}, epochs=2, seeds=1, silent=True)
    assert found.by == "error_rate"
    assert found.verdict.startswith("By error_rate, a is first")


def test_learners_and_their_data_are_let_go_of() -> None:
    alive = []

    def make_one() -> Learner:
        learn = make()
        alive.append(weakref.ref(learn.data.train_dl))
        return learn

    compare(make_one, {"a": 1e-2, "b": 1e-3}, epochs=1, seeds=3, silent=True)
    gc.collect()
    assert not any(one() for one in alive)


def test_the_plot_shows_every_recipe() -> None:
    found = compare(make, {"a": 1e-2, "b": one_cycle(1e-2)}, epochs=2, seeds=2, silent=True)
    rates, losses = found.plot(return_fig=True).axes
    assert [line.get_label() for line in rates.lines] == ["a", "b"]
    assert list(rates.lines[1].get_ydata()) == found.runs["b"][0].lrs
    mean = np.mean([run.losses for run in found.runs["a"]], axis=0)
    assert list(losses.lines[0].get_ydata()) == pytest.approx(list(mean))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"make_learner": 3}, TypeError, "`make_learner` must be callable, got 3"),
        ({"make_learner": lambda: 3}, TypeError, "make_learner returned 3; it must return a Learner"),
        ({"recipes": {"a": "x"}}, TypeError, "The recipe a is 'x'; give a rate, a schedule"),
        ({"recipes": {"a": lambda: 3}}, TypeError, "The recipe a must take"),
        ({"seeds": 0}, ValueError, "`seeds` must be at least 1, got 0"),
        ({"seeds": [1, 1]}, ValueError, r"seeds is \[1, 1\]; give a number of them, or different ones"),
        ({"recipes": {}}, TypeError, r"recipes is \{\}; give a dict"),
        ({"recipes": [1e-2]}, TypeError, r"recipes is \[0.01\]; give a dict"),
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1, got 0"),
    ],
)
def test_wrong_use(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        compare(**({"make_learner": make, "recipes": {"a": 1e-2}, "silent": True} | arguments))


def test_a_learner_that_was_trained_already_is_refused() -> None:
    learn = make()
    with pytest.raises(MinifastError, match="a learner that was trained already; it must make a new one"):
        compare(lambda: learn, {"a": 1e-2, "b": 1e-3}, epochs=1, silent=True)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (lambda learn, epochs: None, "trained nothing; it must fit the learner"),
        (lambda learn, epochs: learn.fit(epochs, callbacks=[NoValidation()]), "ended without a validation"),
    ],
)
def test_a_recipe_that_shows_nothing_is_named(recipe, message) -> None:
    with pytest.raises(MinifastError, match=message) as caught:
        compare(make, {"a": recipe}, silent=True)
    if hasattr(caught.value, "__notes__"):  # from Python 3.11 on
        assert caught.value.__notes__[-1] == "This was the recipe a with seed 0."


class NoValidation(Callback):
    def on_train_begin(self):
        return {"skip_validate": True}


@pytest.mark.parametrize(
    ("name", "lower"), [("mse", True), ("exp_rmspe", True), ("mean_squared_error", True), ("r2_score", False)]
)
def test_what_is_better_goes_by_the_measure(name, lower) -> None:
    each = {"a": 1.0, "b": 0.5}
    found = Comparison(
        {key: [Run(0, [], [], {"valid_loss": 1.0, name: value}, 1.0)] for key, value in each.items()}, name
    )
    assert found.verdict.startswith(f"By {name}, {'b' if lower else 'a'} is first")
