"""The Recorder: its lists, its table and its plots."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import slow, toy_learner
from matplotlib.figure import Figure

import minifast
from minifast import Callback, LearnerCallback, MinifastError, Recorder, SmoothenValue, accuracy, error_rate
from minifast.utils.text import cell, clock

ROOT = Path(minifast.__file__).parents[1]


def fitted(epochs: int = 2, **options):
    learn = toy_learner(**options)
    learn.fit(epochs)
    return learn


# --- the lists


@pytest.mark.parametrize(("epochs", "batches"), [(1, 1), (1, 2), (2, 3), (3, 1)])
def test_a_value_a_batch_and_a_value_an_epoch(epochs, batches) -> None:
    recorder = fitted(epochs, n=batches * 10, bs=10, metrics=[accuracy, error_rate]).recorder
    for a_batch in (recorder.lrs, recorder.moms, recorder.losses, recorder.raw_losses):
        assert len(a_batch) == epochs * batches
    for an_epoch in (recorder.val_losses, recorder.metrics, recorder.nb_batches, recorder.rows):
        assert len(an_epoch) == epochs
    assert recorder.nb_batches == [batches] * epochs
    assert all(len(values) == 2 for values in recorder.metrics)
    assert recorder.names == ["epoch", "train_loss", "valid_loss", "accuracy", "error_rate", "time"]
    assert all(len(row) == len(recorder.names) for row in recorder.rows)


def test_plain_numbers_when_read() -> None:
    recorder = fitted(metrics=[accuracy, lambda output, target: 0.5]).recorder
    for values in (recorder.lrs, recorder.moms, recorder.losses, recorder.raw_losses, recorder.val_losses):
        assert all(type(value) is float for value in values)
    assert all(type(value) is float for values in recorder.metrics for value in values)
    assert all(type(value) is int for value in recorder.nb_batches)
    assert all(type(value) in (int, float) for row in recorder.rows for value in row)


def test_numpy_rates_are_recorded_as_plain_numbers_too() -> None:
    learn = toy_learner()
    learn.fit(1, np.float64(0.01), wd=np.float64(0.1))
    learn.fit_one_cycle(1, np.geomspace(1e-3, 1e-3, 1))
    assert all(type(value) is float for value in (*learn.recorder.lrs, *learn.recorder.moms))


def test_the_smoothed_loss_is_fastai_v1s() -> None:
    recorder = fitted(5, n=100, bs=5).recorder
    average, expected = 0.0, []
    for n, loss in enumerate(recorder.raw_losses, 1):
        average = 0.98 * average + 0.02 * loss
        expected.append(average / (1 - 0.98**n))
    assert recorder.losses == pytest.approx(expected, rel=1e-12)
    assert recorder.losses[0] == pytest.approx(recorder.raw_losses[0], rel=1e-12)
    smooth = SmoothenValue(0.98)
    for loss in recorder.raw_losses:
        smooth.add_value(loss)
    assert (smooth.n, smooth.smooth) == (100, recorder.losses[-1])


def test_the_raw_losses_are_those_of_the_batches() -> None:
    seen = []

    class Sees(Callback):
        def on_batch_end(self, last_loss, train):
            if train:
                seen.append(float(last_loss))

    recorder = fitted(callbacks=[Sees()]).recorder
    assert recorder.raw_losses == seen


def test_smooth_loss_is_a_tensor_as_in_fastai_v1() -> None:
    seen = []

    class Sees(Callback):
        def on_backward_begin(self, smooth_loss):
            seen.append(smooth_loss)

    recorder = fitted(callbacks=[Sees()]).recorder
    assert all(isinstance(value, torch.Tensor) and value.ndim == 0 and value.device.type == "cpu" for value in seen)
    assert [float(value) for value in seen] == pytest.approx(recorder.losses, rel=1e-6)


def test_the_lists_grow_while_the_fit_runs() -> None:
    lengths = []

    class Reads(LearnerCallback):
        def on_batch_end(self, train):
            if train:
                recorder = self.learn.recorder
                lengths.append((len(recorder.lrs), len(recorder.losses), len(recorder.raw_losses)))

    fitted(1, callback_fns=[Reads])
    assert lengths == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


def test_val_losses_are_the_mean_over_items_whatever_the_batches() -> None:
    learn = fitted(1, n=50, bs=20)
    outputs, targets = learn.get_preds(activ=lambda output: output)
    expected = torch.nn.functional.cross_entropy(outputs, targets)
    assert learn.recorder.val_losses == [pytest.approx(float(expected), rel=1e-5)]


def test_an_epoch_without_validation_has_none() -> None:
    class Skips(Callback):
        def on_epoch_end(self, epoch):
            return {"skip_validate": True} if epoch == 0 else None

    learn = fitted(2, callbacks=[Skips()])
    recorder = learn.recorder
    assert recorder.val_losses == [pytest.approx(recorder.val_losses[0]), None]
    assert len(recorder.metrics) == 1
    assert recorder.nb_batches == [3, 3]
    assert [recorder.rows[1][i] for i in (0, 2, 3)] == [1, None, None]
    figure = recorder.plot_losses(return_fig=True)
    assert list(figure.axes[0].lines[1].get_xdata()) == [2]
    recorder.plot_metrics()


def test_every_fit_has_a_record_of_its_own() -> None:
    learn = fitted(1)
    first = learn.recorder
    learn.fit(2)
    assert learn.recorder is not first
    assert (len(first.lrs), len(learn.recorder.lrs)) == (3, 6)


def test_what_was_recorded_stays_when_a_fit_is_interrupted() -> None:
    class Interrupts(Callback):
        def on_batch_begin(self, iteration):
            if iteration == 4:
                raise KeyboardInterrupt

    learn = toy_learner(callbacks=[Interrupts()])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3)
    recorder = learn.recorder
    assert [len(values) for values in (recorder.lrs, recorder.moms, recorder.losses)] == [4, 4, 4]
    assert recorder.nb_batches == [3]
    recorder.plot_losses()


@pytest.mark.parametrize("event", ["on_loss_begin", "on_backward_begin", "on_backward_end", "on_step_end"])
def test_the_lists_of_batches_are_equally_long_wherever_a_fit_is_interrupted(event) -> None:
    callback = Callback()
    callback._order = 100

    def method(iteration):
        if iteration == 1:
            raise KeyboardInterrupt

    setattr(callback, event, method)
    learn = toy_learner(callbacks=[callback])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    recorder = learn.recorder
    assert len({len(values) for values in (recorder.lrs, recorder.moms, recorder.losses, recorder.raw_losses)}) == 1


# --- names and columns


def test_columns_that_a_callback_adds() -> None:
    class Adds(LearnerCallback):
        _order = -20

        def on_train_begin(self, **kwargs):
            self.learn.recorder.add_metric_names(["double", "triple"])

        def on_epoch_end(self, last_metrics, epoch, **kwargs):
            return {"last_metrics": [*last_metrics, 2 * epoch, 3 * epoch]}

    learn = fitted(2, callback_fns=[Adds])
    assert learn.recorder.names == ["epoch", "train_loss", "valid_loss", "accuracy", "double", "triple", "time"]
    assert [values[1:] for values in learn.recorder.metrics] == [[0, 0], [2, 3]]
    assert learn.recorder.metrics_names == ["accuracy", "double", "triple"]
    figure = learn.recorder.plot_metrics(return_fig=True)
    assert [ax.get_ylabel() for ax in figure.axes] == ["accuracy", "double", "triple"]


def test_columns_that_come_after_the_header_raise() -> None:
    class Late(LearnerCallback):
        def on_train_begin(self):
            self.learn.recorder.add_metric_names(["late"])

        def on_epoch_end(self, last_metrics):
            return {"last_metrics": [*last_metrics, 1.0]}

    learn = toy_learner(callback_fns=[Late])
    with pytest.raises(MinifastError, match=r"The columns late come too late: .*`_order = -11`"):
        learn.fit(1)
    Late._order = -11
    assert "late" in learn.fit(1).names
    assert "late=1.0" in repr(learn.recorder)
    with pytest.raises(MinifastError, match="too late"):
        learn.recorder.add_metric_names(["more"])


def test_a_plot_of_metrics_says_that_no_validation_ran() -> None:
    learn = toy_learner()
    learn.data.valid_dl = None
    learn.fit(1)
    with pytest.raises(MinifastError, match="no validation ran: give the DataBunch a validation set"):
        learn.recorder.plot_metrics()


# --- the table


def test_the_table_is_a_header_and_a_line_an_epoch(capsys) -> None:
    fitted(3, silent=False, metrics=[accuracy, error_rate])
    out = capsys.readouterr().out
    assert "\r" not in out
    assert "█" not in out
    assert "\x1b" not in out
    header, *rows = out.splitlines()
    assert header == "epoch     train_loss  valid_loss  accuracy  error_rate  time"
    assert len(rows) == 3
    for epoch, row in enumerate(rows):
        assert re.fullmatch(rf"{epoch}         \d\.\d{{6}}    \d\.\d{{6}}    \d\.\d{{6}}  \d\.\d{{6}}    00:0\d", row)


def test_the_table_shows_what_was_recorded(capsys) -> None:
    learn = fitted(1, silent=False)
    row = capsys.readouterr().out.splitlines()[1].split()
    recorder = learn.recorder
    expected = [recorder.losses[-1], recorder.val_losses[0], recorder.metrics[0][0]]
    assert row[1:4] == [f"{value:.6f}" for value in expected]


def test_what_is_missing_is_na(capsys) -> None:
    learn = toy_learner(silent=False)
    learn.data.valid_dl = None
    learn.fit(1)
    assert capsys.readouterr().out.splitlines()[1].split()[2:4] == ["#na#", "#na#"]


def test_silent_prints_nothing(capsys) -> None:
    learn = toy_learner()
    learn.fit(1)
    learn.fit_one_cycle(1)
    learn.lr_find(num_it=3)
    learn.validate()
    learn.get_preds()
    learn.summary()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")


def test_silence_can_be_switched(capsys) -> None:
    learn = toy_learner()
    learn.silent = False
    learn.fit(1)
    assert "epoch" in capsys.readouterr().out


def test_a_record_without_the_time() -> None:
    learn = toy_learner()
    recorder = Recorder(learn, add_time=False, silent=True)
    learn.fit(2, callbacks=[recorder])
    assert recorder.names == ["epoch", "train_loss", "valid_loss", "accuracy"]
    assert [len(row) for row in recorder.rows] == [4, 4]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (3, "3"), (0.5, "0.500000"), (1e-9, "0.000000"), (None, "#na#"), ("x", "x")]
)
def test_cells(value, text) -> None:
    assert cell(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00"), (0.99, "00:00"), (59.9, "00:59"), (60, "01:00"), (3599, "59:59"),
                          (3600, "1:00:00"), (36610, "10:10:10")]
)  # fmt: skip
def test_the_clock(seconds, text) -> None:
    assert clock(seconds) == text


# --- the plots

PLOTS = ["plot", "plot_lr", "plot_losses", "plot_metrics"]
LABELS = {
    "plot": ("learning rate", "loss (smoothed)"),
    "plot_lr": ("training batch", "learning rate"),
    "plot_losses": ("training batch", "loss"),
    "plot_metrics": ("epoch", "accuracy"),
}


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("batches", [1, 20, *slow(2, 3)])
def test_plots_of_short_histories(name, batches) -> None:
    learn = fitted(1, n=batches * 2, bs=2)
    figure = getattr(learn.recorder, name)(return_fig=True)
    assert isinstance(figure, Figure)
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == LABELS[name]
    assert len(ax.lines[0].get_xdata()) > 0
    figure.canvas.draw()


@pytest.mark.parametrize("batches", [2, 3, 20])
def test_plots_of_short_finders(batches) -> None:
    learn = toy_learner()
    learn.lr_find(num_it=batches, stop_div=False)
    (ax,) = learn.recorder.plot(return_fig=True).axes
    assert ax.get_xscale() == "log"
    points = len(ax.lines[0].get_xdata())
    assert points == batches - 2 * (batches // 4)
    learn.recorder.plot_losses()
    learn.recorder.plot_lr()


def test_the_finders_plot_leaves_out_its_ends() -> None:
    learn = toy_learner()
    learn.lr_find(stop_div=False)
    recorder = learn.recorder
    for options, part in (({}, slice(10, 95)), ({"skip_start": 0, "skip_end": 0}, slice(0, 100)),
                          ({"skip_start": 20, "skip_end": 1}, slice(20, 99))):  # fmt: skip
        (ax,) = recorder.plot(return_fig=True, **options).axes
        assert list(ax.lines[0].get_xdata()) == recorder.lrs[part]
        assert list(ax.lines[0].get_ydata()) == recorder.losses[part]


def test_a_suggestion_is_marked_and_stored() -> None:
    learn = toy_learner(n=200)
    learn.lr_find()
    assert learn.recorder.min_grad_lr is None
    (ax,) = learn.recorder.plot(suggestion=True, return_fig=True).axes
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0] == f"steepest fall: {learn.recorder.min_grad_lr:.2e}"
    assert labels[1].startswith("minimum / 10: ")
    assert ax.lines[1].get_xdata()[0] == learn.recorder.min_grad_lr


def test_without_a_suggestion_the_plot_prints_the_reason_and_shows_the_curve(capsys) -> None:
    learn = toy_learner()
    learn.lr_find(num_it=5)
    (ax,) = learn.recorder.plot(suggestion=True, return_fig=True).axes
    assert "too few to suggest a learning rate" in capsys.readouterr().out
    assert len(ax.lines) == 1
    assert learn.recorder.min_grad_lr is None


@pytest.mark.parametrize("name", PLOTS)
def test_plots_use_the_given_axes(name) -> None:
    learn = fitted(2)
    figure, ax = plt.subplots()
    drawn = getattr(learn.recorder, name)(ax=ax, return_fig=True)
    assert drawn is figure
    assert ax.lines
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", PLOTS)
def test_plots_return_nothing_unless_asked(name) -> None:
    learn = fitted(2)
    assert getattr(learn.recorder, name)() is None
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("name", ["plot", "plot_losses", "plot_metrics"])
def test_plots_with_a_grid(name) -> None:
    (ax,) = getattr(fitted(2).recorder, name)(show_grid=True, return_fig=True).axes
    ax.figure.canvas.draw()
    assert any(line.get_visible() for line in ax.get_xgridlines())


def test_plot_lr_with_momentum_has_two_pairs_of_axes() -> None:
    learn = toy_learner()
    learn.fit_one_cycle(2, 0.01)
    figure = learn.recorder.plot_lr(show_moms=True, return_fig=True)
    left, right = figure.axes
    assert list(left.lines[0].get_ydata()) == learn.recorder.lrs
    assert list(right.lines[0].get_ydata()) == learn.recorder.moms
    assert (right.get_xlabel(), right.get_ylabel()) == ("training batch", "momentum")
    figure, axes = plt.subplots(1, 2)
    assert learn.recorder.plot_lr(show_moms=True, ax=axes, return_fig=True) is figure
    with pytest.raises(ValueError, match="`ax` must hold 2 axes for this plot, got 1"):
        learn.recorder.plot_lr(show_moms=True, ax=axes[0])
    with pytest.raises(ValueError, match="`ax` must hold 1 axes for this plot, got 2"):
        learn.recorder.plot_lr(ax=axes)


def test_plot_lr_of_an_optimizer_without_momentum_states_it_in_the_title() -> None:
    learn = toy_learner(opt_func=torch.optim.Adagrad)
    learn.fit_one_cycle(1, 0.01)
    figure = learn.recorder.plot_lr(show_moms=True, return_fig=True)
    assert figure.axes[1].get_title() == "Adagrad works without momentum here"


@pytest.mark.parametrize("name", ["plot_lr", "plot_losses"])
def test_what_is_skipped_at_the_start_keeps_its_place(name) -> None:
    learn = fitted(2, n=100, bs=5)
    (ax,) = getattr(learn.recorder, name)(skip_start=7, skip_end=3, return_fig=True).axes
    assert list(ax.lines[0].get_xdata()) == list(range(7, 37))


def test_plot_losses_shows_training_and_validation_on_one_scale() -> None:
    learn = fitted(2)
    (ax,) = learn.recorder.plot_losses(return_fig=True).axes
    train, valid = ax.lines
    assert list(train.get_ydata()) == learn.recorder.losses
    assert list(valid.get_xdata()) == [2, 5]
    assert list(valid.get_ydata()) == learn.recorder.val_losses
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train (smoothed)", "valid"]


def test_plot_metrics_has_a_pair_of_axes_for_each_metric() -> None:
    learn = fitted(2, metrics=[accuracy, error_rate])
    figure = learn.recorder.plot_metrics(return_fig=True)
    assert [ax.get_ylabel() for ax in figure.axes] == ["accuracy", "error_rate"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [values[0] for values in learn.recorder.metrics]


@pytest.mark.parametrize("name", ["plot", "plot_lr", "plot_losses"])
def test_there_is_nothing_to_plot_before_a_fit(name) -> None:
    with pytest.raises(MinifastError, match=r"There is nothing to plot yet.*call learn\."):
        getattr(Recorder(toy_learner()), name)()
    assert plt.get_fignums() == []


def test_there_are_no_metrics_to_plot() -> None:
    with pytest.raises(MinifastError, match="There are no metrics to plot"):
        Recorder(toy_learner()).plot_metrics()
    with pytest.raises(MinifastError, match="There are no metrics to plot"):
        fitted(1, metrics=[]).recorder.plot_metrics()


def test_a_learner_that_never_trained_answers_in_a_sentence() -> None:
    learn = toy_learner()
    with pytest.raises(MinifastError, match="There is nothing to plot yet"):
        learn.recorder.plot_losses()
    with pytest.raises(MinifastError, match=r"call learn\.lr_find"):
        learn.recorder.plot()


def test_plots_of_losses_that_are_not_finite() -> None:
    met = iter([1.0, 2.0, float("nan")])
    learn = toy_learner(loss_func=lambda output, target: output.sum() * 0 + next(met), metrics=[])
    with pytest.raises(ArithmeticError):
        learn.fit(1)
    for name in ("plot", "plot_lr", "plot_losses"):
        getattr(learn.recorder, name)(return_fig=True).canvas.draw()


@pytest.mark.slow
def test_a_script_into_a_pipe_without_a_display() -> None:
    code = """
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        from minifast import *
        items = TensorDataset(torch.randn(20, 10), torch.arange(20) % 2)
        data = DataBunch(DataLoader(items, 5), DataLoader(items, 5), device="cpu")
        learn = Learner(data, simple_ann(10, 2, 4), metrics=[accuracy])
        learn.lr_find(num_it=5)
        learn.recorder.plot()
        learn.fit_one_cycle(2, 1e-2)
        learn.recorder.plot_lr(show_moms=True)
        learn.recorder.plot_losses()
        learn.recorder.plot_metrics(return_fig=True).savefig("x.png")
    """
    env = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "DISPLAY")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    folder = Path(os.environ["MINIFAST_HOME"])
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found, header, *rows = done.stdout.splitlines()
    assert "recorder.plot()" in found
    assert header.split() == ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
    assert [row.split()[0] for row in rows] == ["0", "1"]
    assert not set("\r█\x1b") & set(done.stdout)
    assert (folder / "x.png").stat().st_size > 1000


def test_a_finder_run_of_an_optimizer_without_momentum_is_plotted() -> None:
    learn = toy_learner(opt_func=torch.optim.SGD)
    learn.lr_find(num_it=5)
    assert learn.opt is None
    _, momentum = learn.recorder.plot_lr(show_moms=True, return_fig=True).axes
    assert momentum.get_title() == "SGD works without momentum here"
