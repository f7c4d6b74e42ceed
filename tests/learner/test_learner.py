"""The Learner: arguments, training, predictions, saving and loading, and interrupted fits."""

from __future__ import annotations

import io
import itertools
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import toy_data, toy_items, toy_learner
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    Callback,
    DataBunch,
    DataError,
    DatasetType,
    FileFormatError,
    Learner,
    LearnerCallback,
    MinifastError,
    NonFiniteLossError,
    accuracy,
    simple_ann,
)


def weights(learn: Learner) -> list[torch.Tensor]:
    return [value.detach().clone() for value in learn.model.state_dict().values()]


def same(before: list[torch.Tensor], now: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


# --- making one


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet18", "`model` must be an instance of torch's nn.Module, got 'resnet18'; make one"),
        (nn.Linear, "`model` must be an instance of .*, got .*Linear.*; make one"),
        (None, "`model` must be an instance of .*, got None; make one"),
        (lambda x: x, "`model` must be an instance of .*, got .*; make one"),
    ],
)
def test_a_model_of_the_wrong_type_raises(model, message) -> None:
    with pytest.raises(TypeError, match=message):
        Learner(toy_data(), model)


@pytest.mark.parametrize("data", [None, "mnist", [1, 2], DataLoader(toy_items(), 20)])
def test_data_of_the_wrong_type_raise(data) -> None:
    with pytest.raises(TypeError, match=r"`data` must be a DataBunch, got \w+; wrap your loaders"):
        Learner(data, nn.Linear(10, 2))


@pytest.mark.parametrize(
    ("target", "loss"),
    [
        (torch.zeros(40, dtype=torch.long), nn.CrossEntropyLoss),
        (torch.zeros(40), nn.MSELoss),
        (torch.zeros(40, 2), nn.MSELoss),
    ],
)
def test_the_loss_is_chosen_from_the_data(target, loss) -> None:
    items = TensorDataset(torch.zeros(40, 10), target)
    data = DataBunch(DataLoader(items, 20), DataLoader(items, 20), device="cpu")
    assert isinstance(Learner(data, nn.Linear(10, 2)).loss_func, loss)
    own = nn.L1Loss()
    assert Learner(data, nn.Linear(10, 2), loss_func=own).loss_func is own


def test_data_without_a_default_loss_raise() -> None:
    data = DataBunch([(torch.zeros(2, 10), torch.zeros(2))], device="cpu")
    with pytest.raises(DataError, match="No loss can be chosen from the data; pass `loss_func`"):
        Learner(data, nn.Linear(10, 2))


@pytest.mark.parametrize("name", ["loss_func", "opt_func"])
def test_arguments_that_are_not_callable_raise(name) -> None:
    for value in ("cross_entropy", 3):
        with pytest.raises(TypeError, match=f"`{name}` must be callable, got .*{value}"):
            toy_learner(**{name: value}).fit(1)


def test_a_loss_class_instead_of_an_instance_raises() -> None:
    with pytest.raises(
        TypeError, match=r"`loss_func` is the class CrossEntropyLoss; pass an instance of it: CrossEntropyLoss\(\)"
    ):
        toy_learner(loss_func=nn.CrossEntropyLoss).fit(1)


def test_the_path_comes_from_the_data_or_the_argument(tmp_path) -> None:
    assert toy_learner().path == Path()
    learn = toy_learner(path=tmp_path, model_dir="here")
    learn.save("x")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["x.pth"]


# --- the arguments of fit


@pytest.mark.parametrize(
    ("epochs", "error", "message"),
    [
        (0, ValueError, "`epochs` must be at least 1, got 0"),
        (-3, ValueError, "`epochs` must be at least 1, got -3"),
        (1.0, TypeError, r"`epochs` must be an integer, got 1\.0 of type float"),
        ("2", TypeError, "`epochs` must be an integer, got '2' of type str"),
        (None, TypeError, "`epochs` must be an integer, got None of type NoneType"),
        (True, TypeError, "`epochs` must be an integer, got True of type bool"),
    ],
)
def test_epochs_must_be_an_integer_of_at_least_1(epochs, error, message) -> None:
    learn = toy_learner()
    before = weights(learn)
    with pytest.raises(error, match=message):
        learn.fit(epochs)
    assert same(before, weights(learn))


def test_epochs_may_be_a_numpy_integer() -> None:
    learn = toy_learner()
    learn.fit(np.int64(2))
    assert len(learn.recorder.val_losses) == 2


@pytest.mark.parametrize(
    ("lr", "error", "message"),
    [
        (0, ValueError, "`lr` must be positive, got 0"),
        (0.0, ValueError, "`lr` must be positive, got 0"),
        (-1e-3, ValueError, r"`lr` must be positive, got -0\.001"),
        ("0.1", TypeError, r"`lr` must be a number, got '0\.1' of type str"),
        ("auto", TypeError, "`lr` must be a number, got 'auto' of type str"),
        (float("inf"), ValueError, "`lr` must be finite, got inf"),
        (None, TypeError, "`lr` must be a learning rate, got None"),
        ([0.1, 0.2], ValueError, "lr has 2 values for 1 layer groups"),
    ],
)
def test_a_learning_rate_must_be_positive(lr, error, message) -> None:
    learn = toy_learner()
    learn.fit(1)
    before, rate = weights(learn), learn.opt.lr
    with pytest.raises(error, match=message):
        learn.fit(1, lr)
    assert same(before, weights(learn))
    assert learn.opt.lr == rate


@pytest.mark.parametrize("wd", ["0.1", None, float("nan"), -0.1])
def test_weight_decay_must_be_at_least_0(wd) -> None:
    learn = toy_learner(wd=wd)
    with pytest.raises((TypeError, ValueError), match="`wd` must be"):
        learn.fit(1)


def test_weight_decay_may_be_an_array_with_one_value_per_layer_group() -> None:
    learn = toy_learner(wd=np.array([0.1, 0.2]))
    learn.layer_groups = [learn.model[1], learn.model[3]]
    learn.fit(1)
    assert learn.opt.read("wd") == [0.1, 0.2]
    learn.fit(1, wd=[0.3, 0.4])
    assert learn.opt.read("wd") == [0.3, 0.4]


def test_training_data_without_a_batch_raise() -> None:
    data = DataBunch(DataLoader(toy_items(5), 20, drop_last=True), device="cpu")
    learn = Learner(data, simple_ann(10, 2), silent=True)
    for train in (lambda: learn.fit(1), lambda: learn.fit_one_cycle(1), learn.lr_find):
        with pytest.raises(DataError, match="The training data have no batch: they have fewer samples than one batch"):
            train()


# --- what does not fit together


def data_of(targets: list[int], classes=("a", "b"), bs: int = 4) -> DataBunch:
    items = list(TensorDataset(torch.zeros(len(targets), 10), torch.tensor(targets)))  # the bunch cannot check it
    return DataBunch(DataLoader(items, bs), DataLoader(items, bs), device="cpu", classes=classes)


@pytest.mark.parametrize("outputs", [1, 3, 10])
@pytest.mark.parametrize("train", ["fit", "fit_one_cycle", "lr_find"])
def test_a_number_of_outputs_other_than_the_classes_raises(outputs, train) -> None:
    learn = Learner(data_of([0, 1, 0, 1]), nn.Linear(10, outputs), silent=True)
    before = weights(learn)
    with pytest.raises(DataError, match=rf"The model gives {outputs} outputs?, but the data have 2 classes \(a, b\)"):
        getattr(learn, train)(*([] if train == "lr_find" else [1]))
    assert same(before, weights(learn))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 1, 2, 0], "The targets go from 0 to 2, but the model gives 2 outputs; targets are .* from 0 to 1"),
        ([-1, 1, 0, 0], "The targets go from -1 to 1"),
        ([0, 1, 0, 1, 1, 1, 7, 0], "The targets go from [01] to 7"),  # in the second batch
    ],
)
@pytest.mark.parametrize("classes", [None, ("a", "b")])
def test_targets_out_of_range_raise(targets, message, classes) -> None:
    learn = Learner(data_of(targets, classes), nn.Linear(10, 2), silent=True)
    with pytest.raises(DataError, match=message):
        learn.fit(1)


def test_targets_out_of_range_in_validation_raise() -> None:
    data = DataBunch(data_of([0, 1]).train_dl, data_of([0, 5]).valid_dl, device="cpu")
    with pytest.raises(DataError, match="The targets go from 0 to 5"):
        Learner(data, nn.Linear(10, 2), silent=True).fit(1)


@pytest.mark.parametrize("where", ["data", "model", "loss_func", "callback"])
def test_an_index_error_of_the_model_or_loss_is_not_replaced(where) -> None:
    def fails(*args):
        raise IndexError("not a target")

    learn = toy_learner()
    if where == "data":
        learn.data.train_dl.add_tfm(fails)
    elif where == "model":
        learn.model.register_forward_pre_hook(fails)
    elif where == "loss_func":
        learn.loss_func = fails
    else:
        callback = Callback()
        callback.on_train_begin = lambda: fails()
        learn.callbacks = [callback]
    with pytest.raises(IndexError, match="not a target"):
        learn.fit(1)


@pytest.mark.parametrize("loss_func", [nn.MSELoss(), functional.mse_loss, partial(functional.huber_loss, delta=0.5)])
def test_regression_targets_that_would_broadcast_raise(loss_func) -> None:
    batches = [(torch.randn(8, 10), torch.randn(8))]
    learn = Learner(DataBunch(batches, device="cpu"), simple_ann(10, 1), loss_func=loss_func, silent=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wonders too, and goes on
        with pytest.raises(DataError, match=r"\(8, 1\) and the targets \(8,\), which \w+ would broadcast"):
            learn.fit(1)


def test_the_ignored_target_is_in_range() -> None:
    learn = Learner(data_of([0, 1, -100, 1]), nn.Linear(10, 2), silent=True)
    learn.fit(1)
    assert np.isfinite(learn.recorder.losses).all()


@pytest.mark.parametrize(
    ("loss_func", "error", "message"),
    [
        (
            nn.CrossEntropyLoss(reduction="none"),
            ValueError,
            r"must return one number per batch, got a tensor of shape \(20,\)",
        ),
        (lambda output, target: output, ValueError, r"of shape \(20, 2\)"),
        (lambda output, target: 1.0, TypeError, "`loss_func` must return a tensor of one number, got 1.0"),
        (lambda output, target: None, TypeError, "`loss_func` must return a tensor of one number, got None"),
    ],
)
def test_a_loss_that_is_not_one_number_raises_before_a_step(loss_func, error, message) -> None:
    learn = toy_learner(loss_func=loss_func)
    before = weights(learn)
    with pytest.raises(error, match=message):
        learn.fit(1)
    assert same(before, weights(learn))


def test_a_loss_may_be_a_tensor_of_one_element() -> None:
    learn = toy_learner(loss_func=lambda output, target: functional.cross_entropy(output, target)[None])
    learn.fit(1)
    assert len(learn.recorder.losses) == 3


# --- losses that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("batch", [0, 1, 4])
def test_a_loss_that_is_not_finite_stops_the_fit_and_names_the_batch(bad, batch) -> None:
    count = itertools.count()

    def loss_func(output, target):
        loss = functional.cross_entropy(output, target)
        return loss * bad if torch.is_grad_enabled() and next(count) == batch else loss

    learn = toy_learner(loss_func=loss_func)
    left = []

    class Keeps(Callback):
        def on_batch_begin(self, train):
            if train:
                left.append(weights(learn))

    learn.callbacks = [Keeps()]
    with pytest.raises(NonFiniteLossError) as error:
        learn.fit(3, 0.02)
    epoch, number = divmod(batch, 3)
    way_out = "try a lower learning rate" if batch else "no step was made yet"
    assert f"is {bad} at epoch {epoch}, batch {number}, learning rate 0.02; {way_out}" in str(error.value)
    assert same(left[-1], weights(learn)), "the weights are as the batch before left them"
    recorder = learn.recorder
    assert len(recorder.raw_losses) == len(recorder.lrs) == batch
    if batch:
        recorder.plot_losses(return_fig=True).canvas.draw()
        recorder.plot_lr(return_fig=True).canvas.draw()
    learn.loss_func = nn.CrossEntropyLoss()
    learn.fit(1)
    assert np.isfinite(learn.recorder.losses).all()


def test_the_error_names_the_learning_rate_of_the_batch() -> None:
    count = itertools.count()
    learn = toy_learner(
        loss_func=lambda output, target: output.sum() * (float("nan") if next(count) == 1 else 1.0), metrics=[]
    )
    with pytest.raises(NonFiniteLossError, match=r"epoch 0, batch 1, learning rate 0\.05;"):
        learn.fit_one_cycle(1, 0.05)  # of 3 batches the second has the highest rate
    assert learn.opt.mom == 0.9


def test_training_that_diverges_stops() -> None:
    learn = toy_learner(opt_func=torch.optim.SGD, loss_func=lambda output, target: (output**4).mean())
    with pytest.raises(NonFiniteLossError, match="try a lower learning rate"):
        learn.fit(20, 1e6)
    assert all(torch.isfinite(value).all() for value in weights(learn))


# --- going on


def test_a_later_fit_continues_with_the_optimizer_state() -> None:
    learn = toy_learner()
    learn.fit(1)
    opt = learn.opt
    learn.fit_one_cycle(2)
    assert learn.opt is opt
    (state, *_) = opt.opt.state.values()
    assert int(state["step"]) == 9
    learn.create_opt(1e-3)
    assert learn.opt is not opt
    assert not learn.opt.opt.state


def test_two_fits_of_one_epoch_equal_one_fit_of_two() -> None:
    once, twice = toy_learner(), toy_learner()
    once.fit(2)
    twice.fit(1)
    twice.fit(1)
    assert same(weights(once), weights(twice))


def test_wd_of_a_fit_applies_to_that_fit_only() -> None:
    learn = toy_learner(wd=0.1)
    seen = []

    class Reads(LearnerCallback):
        def on_train_begin(self):
            seen.append(self.learn.opt.wd)

    learn.callback_fns = [Reads]
    learn.fit(1)
    learn.fit(1, wd=0.3)
    learn.fit(1)
    assert seen == [0.1, 0.3, 0.1]


def test_the_model_trains_in_training_mode_and_validates_in_evaluation_mode() -> None:
    modes = []

    class Notes(LearnerCallback):
        def on_batch_begin(self, train):
            modes.append((train, self.learn.model.training, torch.is_grad_enabled()))

    learn = toy_learner(n=20, bs=20, callback_fns=[Notes])
    learn.model.eval()
    learn.fit(2)
    assert modes == [(True, True, True), (False, False, False)] * 2


def interrupting(iteration: int, event: str = "on_batch_end", how=None) -> Callback:
    callback = Callback()

    def interrupt():
        raise KeyboardInterrupt

    def method(**known):
        if known["iteration"] == iteration and known["train"]:
            (how or interrupt)()

    setattr(callback, event, method)
    return callback


def test_after_ctrl_c_the_record_stays_and_training_can_continue(capsys) -> None:
    learn = toy_learner(silent=False)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3, callbacks=[interrupting(4)])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("epoch")
    assert out[1].startswith("0  ")
    assert out[2] == "Stopped in epoch 1 at batch 1 of 3; you can continue to train the learner."
    assert len(learn.recorder.rows) == 1
    assert len(learn.recorder.losses) == 5
    learn.fit(1)
    assert len(learn.recorder.losses) == 3


def test_a_real_ctrl_c_stops_a_fit() -> None:
    learn = toy_learner()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3, callbacks=[interrupting(4, how=lambda: os.kill(os.getpid(), signal.SIGINT))])
    signal.signal(signal.SIGINT, before)
    assert 4 <= len(learn.recorder.losses) <= 6
    learn.fit(1)


@pytest.mark.parametrize(("event", "error"), [("on_backward_end", KeyboardInterrupt), ("on_step_end", RuntimeError)])
def test_an_interrupted_batch_leaves_no_gradient_for_the_next_fit(event, error) -> None:
    def fail():
        raise error

    learn = toy_learner()
    with pytest.raises(error):
        learn.fit(1, callbacks=[interrupting(1, event, fail)])
    gradients = []

    class Compares(Callback):
        def on_backward_end(self, last_input, last_target):
            if not gradients:
                gradients.append(learn.model[1].weight.grad.clone())
                loss = learn.loss_func(learn.model(last_input), last_target)
                gradients.append(torch.autograd.grad(loss, learn.model[1].weight)[0])

    learn.fit(1, callbacks=[Compares()])
    assert torch.allclose(*gradients)


# --- validation and predictions


def test_validate_returns_the_loss_and_the_metrics() -> None:
    learn = toy_learner(n=50, bs=20)
    learn.fit(1)
    values = learn.validate()
    assert values == pytest.approx([learn.recorder.val_losses[-1], *learn.recorder.metrics[-1]])
    assert all(type(value) is float for value in values)
    assert learn.validate(metrics=[]) == values[:1]
    assert len(learn.validate(metrics=[accuracy, accuracy])) == 3
    assert learn.validate(learn.data.train_dl) == pytest.approx(values)


def test_validate_does_not_change_modes_weights_or_record() -> None:
    learn = toy_learner()
    learn.fit(1)
    learn.model.train()
    learn.model[2].eval()
    recorder, before = learn.recorder, weights(learn)
    learn.validate()
    assert [module.training for module in learn.model] == [True, True, False, True]
    assert learn.recorder is recorder
    assert same(before, weights(learn))


def test_validating_without_data_raises() -> None:
    learn = toy_learner()
    with pytest.raises(MinifastError, match="no batch"):
        learn.validate([])
    learn.data.valid_dl.dl = []
    for ask in (learn.validate, learn.get_preds):
        with pytest.raises(MinifastError, match="no batch"):
            ask()
    learn.data.valid_dl = None
    for ask in (learn.validate, learn.get_preds):
        with pytest.raises(DataError, match="have no valid part"):
            ask()
    with pytest.raises(
        DataError, match=r"have no test part\. Make the data with create\(\.\.\., test_ds=test_ds\), or"
    ):
        learn.get_preds(DatasetType.Test)


def test_get_preds_returns_probabilities_and_targets() -> None:
    learn = toy_learner(n=50, bs=20)
    learn.fit(1)
    predictions, targets = learn.get_preds()
    assert predictions.shape == (50, 2)
    assert predictions.sum(1).tolist() == pytest.approx([1.0] * 50)
    assert torch.equal(targets, toy_items(50).tensors[1])
    assert not predictions.requires_grad
    outputs, _ = learn.get_preds(activ=lambda output: output)
    assert torch.allclose(outputs.softmax(1), predictions)
    assert float((predictions.argmax(1) == targets).float().mean()) == pytest.approx(learn.recorder.metrics[-1][0])


@pytest.mark.parametrize(
    ("loss_func", "each"),
    [
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none")),
        (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")),
        (functional.cross_entropy, nn.CrossEntropyLoss(reduction="none")),
        (partial(functional.cross_entropy, reduction="sum"), nn.CrossEntropyLoss(reduction="none")),
        (lambda output, target: functional.cross_entropy(output, target), nn.CrossEntropyLoss(reduction="none")),
    ],
)
def test_get_preds_with_the_loss_of_each_sample(loss_func, each) -> None:
    learn = toy_learner(n=50, bs=20, loss_func=loss_func)
    outputs, targets, losses = learn.get_preds(with_loss=True, activ=lambda output: output)
    assert losses.shape == (50,)
    assert torch.allclose(losses, each(outputs, targets), atol=1e-6)
    assert getattr(loss_func, "reduction", "mean") == "mean"


@pytest.mark.parametrize(("n_batch", "n"), [(1, 20), (2, 40), (3, 50), (9, 50), (None, 50)])
def test_get_preds_of_some_batches(n_batch, n) -> None:
    learn = toy_learner(n=50, bs=20)
    predictions, targets, losses = learn.get_preds(n_batch=n_batch, with_loss=True)
    assert len(predictions) == len(targets) == len(losses) == n


def test_get_preds_without_a_batch_raises() -> None:
    for n_batch, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="`n_batch` must be"):
            toy_learner().get_preds(n_batch=n_batch)


@pytest.mark.parametrize(
    ("loss_func", "activation"),
    [
        (nn.BCEWithLogitsLoss(), torch.sigmoid),
        (nn.NLLLoss(), torch.exp),
        (functional.nll_loss, torch.exp),
        (partial(functional.cross_entropy, label_smoothing=0.1), lambda output: output.softmax(1)),
        (nn.MSELoss(), lambda output: output),
    ],
)
def test_predictions_have_the_activation_of_the_loss(loss_func, activation) -> None:
    learn = toy_learner(loss_func=loss_func, metrics=[])
    outputs, _ = learn.get_preds(activ=lambda output: output)
    assert torch.allclose(learn.get_preds()[0], activation(outputs))


def test_predict_one_sample() -> None:
    items = toy_items()
    learn = Learner(
        DataBunch(DataLoader(items, 20), DataLoader(items, 20), device="cpu", classes=["no", "yes"]),
        nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
        silent=True,
    )
    learn.fit(3, 0.02)
    predictions, _ = learn.get_preds()
    learn.model.train()
    name, number, probabilities = learn.predict(items[3][0])
    assert name == ["no", "yes"][int(number)]
    assert int(number) == int(predictions[3].argmax())
    assert torch.allclose(probabilities, predictions[3], atol=1e-6)
    assert learn.model.training


def test_predict_a_number() -> None:
    items = TensorDataset(torch.zeros(20, 10), torch.zeros(20, 1))
    learn = Learner(DataBunch(DataLoader(items, 10), device="cpu"), nn.Linear(10, 1), silent=True)
    first, second, third = learn.predict(torch.zeros(10))
    assert first is second is third
    assert torch.allclose(first, learn.model.bias)


def test_summary_names_layers_shapes_and_parameters() -> None:
    learn = toy_learner()
    learn.model[1].bias.requires_grad_(False)
    lines = str(learn.summary()).splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["layer", "Flatten", "Linear", "ReLU", "Linear"]
    assert "20 x 8" in lines[2]
    assert lines[2].endswith("88     partly")
    assert lines[-1] == "106 parameters, 98 of them trainable"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_summary_of_a_scripted_model_says_what_to_pass() -> None:
    learn = toy_learner()
    learn.model = torch.jit.script(learn.model)
    with pytest.raises(MinifastError, match="takes no hooks, so its layers cannot be listed; call summary with the"):
        learn.summary()


@pytest.mark.parametrize("look", [lambda learn: learn.summary(), lambda learn: learn.data.one_batch()])
def test_inspecting_a_learner_does_not_change_training(look) -> None:
    def trained(with_look: bool) -> list[float]:
        torch.manual_seed(0)
        learn = Learner(toy_data(shuffle=True), simple_ann(10, 2, 8), silent=True)
        if with_look:
            look(learn)
        learn.fit(1)
        return learn.recorder.raw_losses

    assert trained(True) == trained(False)


# --- saving and loading


def learner_in(folder, **options) -> Learner:
    return toy_learner(path=folder, **options)


def test_save_and_load_with_the_optimizer(tmp_path) -> None:
    learn = learner_in(tmp_path)
    learn.fit_one_cycle(1, np.float64(0.01))
    assert learn.save("a", return_path=True) == tmp_path / "models" / "a.pth"
    saved = weights(learn)
    learn.fit(2, 0.03)
    straight_on = learn.recorder.raw_losses

    fresh = learner_in(tmp_path)
    assert fresh.load("a") is fresh
    assert same(saved, weights(fresh))
    fresh.fit(2, 0.03)
    assert fresh.recorder.raw_losses == straight_on
    assert same(weights(learn), weights(fresh))

    learn.load("a")
    assert same(saved, weights(learn))


@pytest.mark.parametrize("opt_func", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop])
def test_the_weight_decay_of_the_optimizer_is_saved(tmp_path, opt_func) -> None:
    learn = learner_in(tmp_path, opt_func=opt_func)
    learn.fit(1, 0.01, wd=0.5)
    learn.save("a")
    fresh = learner_in(tmp_path, opt_func=opt_func)
    fresh.load("a")
    assert (fresh.opt.lr, fresh.opt.wd) == (0.01, 0.5)


def test_save_and_load_without_the_optimizer(tmp_path) -> None:
    learn = learner_in(tmp_path)
    learn.save("never trained")
    learn.fit(1)
    learn.save("bare", with_opt=False)
    learn.save("both")
    fresh = learner_in(tmp_path)
    for name in ("never trained", "bare"):
        assert set(torch.load(tmp_path / "models" / f"{name}.pth")) == set(learn.model.state_dict())
        fresh.load(name)
        assert fresh.opt is None
    with pytest.raises(MinifastError, match="holds no optimizer state; load it with with_opt=False"):
        fresh.load("bare", with_opt=True)
    fresh.load("both", with_opt=False)
    assert fresh.opt is None
    assert same(weights(learn), weights(fresh))


def test_save_and_load_an_open_file(tmp_path) -> None:
    learn = learner_in(tmp_path)
    learn.fit(1)
    file = io.BytesIO()
    learn.save(file)
    file.seek(0)
    fresh = learner_in(tmp_path)
    fresh.load(file)
    assert same(weights(learn), weights(fresh))
    assert list(tmp_path.iterdir()) == []


def test_a_saved_file_holds_tensors_and_plain_values_only(tmp_path) -> None:
    learn = learner_in(tmp_path)
    learn.layer_groups = [learn.model[1], learn.model[3]]
    learn.fit(1, slice(1e-3, 1e-2), wd=np.float64(0.1))
    learn.fit_one_cycle(1, slice(1e-3, 1e-2))
    learn.lr_find(num_it=3)
    learn.save("x")
    state = torch.load(tmp_path / "models" / "x.pth", weights_only=True)
    assert set(state) == {"model", "opt"}


def spoil(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "cut off":
        file.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "text":
        file.write_text("not a model")


@pytest.mark.parametrize("how", ["cut off", "empty", "text"])
def test_a_damaged_file_raises_and_changes_nothing(tmp_path, how) -> None:
    learn = learner_in(tmp_path)
    learn.fit(1)
    file = learn.save("x", return_path=True)
    spoil(file, how)
    learn.fit(1)
    before = weights(learn)
    with pytest.raises(FileFormatError, match=r"x\.pth"):
        learn.load("x")
    assert same(before, weights(learn))


class RunsCode:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["MINIFAST_HOME"] + ".ran"),))


@pytest.mark.parametrize("wrapped", [False, True])
def test_code_in_a_file_does_not_run(tmp_path, wrapped) -> None:
    learn = learner_in(tmp_path)
    file = learn.save("x", return_path=True)
    torch.save({"model": learn.model.state_dict(), "opt": RunsCode()} if wrapped else RunsCode(), file)
    ran = Path(os.environ["MINIFAST_HOME"] + ".ran")
    with pytest.raises(FileFormatError, match="can run code"):
        learn.load("x")
    assert not ran.exists()
    ran.parent.mkdir(exist_ok=True)
    torch.load(file, weights_only=False)
    assert ran.exists(), "the file is as malicious as it is meant to be"


def test_the_error_for_a_missing_file_lists_the_existing_ones(tmp_path) -> None:
    learn = learner_in(tmp_path)
    learn.save("one")
    learn.save("two")
    with pytest.raises(FileNotFoundError, match=r"no file .*three\.pth.*one, two"):
        learn.load("three")


def other_models() -> dict[str, nn.Module]:
    return {
        "another head": nn.Sequential(nn.Flatten(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)),
        "fewer layers": nn.Sequential(nn.Flatten(), nn.Linear(10, 8)),
        "more layers": nn.Sequential(nn.Flatten(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2), nn.Linear(2, 2)),
        "other names": nn.Sequential(nn.Linear(10, 2)),
    }


@pytest.mark.parametrize("other", list(other_models()))
def test_a_file_of_another_model_raises_and_changes_nothing(tmp_path, other) -> None:
    learn = Learner(toy_data(), other_models()[other], path=tmp_path, silent=True)
    learn.create_opt(1e-3)
    learn.save("x")
    fresh = learner_in(tmp_path)
    before = weights(fresh)
    with pytest.raises(DataError, match=r"x\.pth belongs to another model than this learner's"):
        fresh.load("x")
    assert same(before, weights(fresh))
    assert fresh.opt is None


@pytest.mark.parametrize("content", [[1, 2], 3, {"model": 3, "opt": 4}, {"a": torch.zeros(2)}, torch.zeros(3)])
def test_a_file_with_other_content_raises(tmp_path, content) -> None:
    learn = learner_in(tmp_path)
    torch.save(content, learn.save("x", return_path=True))
    before = weights(learn)
    with pytest.raises(MinifastError, match=r"x\.pth"):
        learn.load("x")
    assert same(before, weights(learn))


@pytest.mark.parametrize("saved", ["another kind", "other groups", "fastai's"])
def test_the_state_of_another_optimizer_raises_and_changes_nothing(tmp_path, saved) -> None:
    learn = learner_in(tmp_path, opt_func=torch.optim.SGD) if saved == "another kind" else learner_in(tmp_path)
    if saved == "other groups":
        learn.layer_groups = [learn.model[1], learn.model[3]]
    learn.fit(1, 0.1)
    file = learn.save("x", return_path=True)
    if saved == "fastai's":
        torch.save({"model": learn.model.state_dict(), "opt": learn.opt.opt.state_dict()}, file)
    fresh = learner_in(tmp_path)
    fresh.fit(1, 0.02)
    before = weights(fresh)
    with pytest.raises(MinifastError, match=r"x\.pth.*optimizer.*with_opt=False"):
        fresh.load("x")
    assert same(before, weights(fresh))
    assert fresh.opt.lr == 0.02
    fresh.fit(1)
    fresh.load("x", with_opt=False)
    assert same(weights(learn), weights(fresh))


def test_strict_false_loads_part_of_a_model(tmp_path) -> None:
    learn = Learner(toy_data(), other_models()["more layers"], path=tmp_path, silent=True)
    learn.save("x")
    fresh = learner_in(tmp_path)
    fresh.load("x", strict=False)
    assert torch.equal(fresh.model[1].weight, learn.model[1].weight)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/elsewhere/x", "../../x"])
def test_saving_outside_the_folder_raises(tmp_path, name) -> None:
    with pytest.raises(ValueError, match=r"is outside of .*models; give a name"):
        learner_in(tmp_path / "a" / "b").save(name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_outside_the_folder_is_loaded_by_its_path(tmp_path) -> None:
    learn = learner_in(tmp_path / "a")
    file = learn.save("x.pth", return_path=True)
    assert file.name == "x.pth"
    fresh = learner_in(tmp_path / "b")
    fresh.load(file.absolute())
    assert same(weights(learn), weights(fresh))


def test_a_name_may_have_a_subfolder(tmp_path) -> None:
    learn = learner_in(tmp_path)
    learn.save("deep/x")
    learn.load("deep/x")
    assert (tmp_path / "models" / "deep" / "x.pth").is_file()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_save_leaves_only_the_old_file(tmp_path, monkeypatch, error) -> None:
    learn = learner_in(tmp_path)
    file = learn.save("x", return_path=True)
    content = file.read_bytes()

    def half(values, target, **options):
        stream = target if hasattr(target, "write") else Path(target).open("wb")  # noqa: SIM115
        stream.write(b"half")
        stream.flush()
        raise error

    monkeypatch.setattr(torch, "save", half)
    for name in ("x", "new"):
        with pytest.raises(type(error)):
            learn.save(name)
    assert file.read_bytes() == content
    assert list((tmp_path / "models").iterdir()) == [file]


def test_save_and_load_during_a_fit(tmp_path) -> None:
    class SavesBest(LearnerCallback):
        def on_epoch_end(self, epoch):
            self.learn.save(f"epoch{epoch}")

        def on_train_end(self):
            self.learn.load("epoch0")

    learn = learner_in(tmp_path, callback_fns=[SavesBest])
    learn.fit_one_cycle(2, 0.01)
    saved = torch.load(tmp_path / "models" / "epoch0.pth")["model"]
    assert same(list(saved.values()), weights(learn))
    learn.fit(1)


# --- errors before any training


def test_invalid_optimizers_raise() -> None:
    for make, error, message in (
        (lambda params, lr: torch.optim.SGD(params[0]["params"][:1], lr=lr), ValueError, "`opt_func` leaves out"),
        (lambda params, lr: None, TypeError, "`opt_func` must return a torch optimizer, got None"),
    ):
        with pytest.raises(error, match=message):
            toy_learner(opt_func=make).fit(1)


def test_a_completely_frozen_model_raises() -> None:
    learn = toy_learner()
    learn.model.requires_grad_(False)
    with pytest.raises(ValueError, match="The model has no trainable parameter: all are frozen"):
        learn.fit(1)


@pytest.mark.parametrize("file", ["a\0b", ".", "", "x/.."])
def test_an_invalid_name_of_a_file_raises(tmp_path, file) -> None:
    with pytest.raises(ValueError, match="`file` must be a file name"):
        toy_learner(path=tmp_path).save(file)


@pytest.mark.parametrize("file", [123, None])
def test_an_invalid_type_of_a_file_raises(tmp_path, file) -> None:
    learn = toy_learner(path=tmp_path)
    for use in (learn.save, learn.load):
        with pytest.raises(TypeError, match="must be a name, a path or an open file"):
            use(file)


def test_a_pickled_model_is_loaded_from_a_trusted_file(tmp_path) -> None:
    learn = toy_learner(path=tmp_path)
    (tmp_path / "models").mkdir()
    other = toy_learner()
    torch.save(other.model, tmp_path / "models" / "whole.pth")
    learn.load("whole", trust=True)
    pairs = zip(learn.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_gradients_of_an_earlier_run_are_cleared() -> None:
    class Keeps(Callback):
        def on_backward_end(self):
            return {"skip_step": True, "skip_zero": True}

    learn, alone = toy_learner(), toy_learner()
    alone.model.load_state_dict(learn.model.state_dict())
    learn.fit(1, 1e-2, callbacks=[Keeps()])
    learn.fit(1, 1e-2)
    alone.fit(1, 1e-2)
    pairs = zip(learn.model.state_dict().values(), alone.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have notes from Python 3.11 on")
def test_an_error_in_the_validation_names_it() -> None:
    class Fails(Callback):
        def on_batch_begin(self, train):
            if not train:
                raise OSError("gone")

    with pytest.raises(OSError, match="gone") as error:
        toy_learner().fit(1, 1e-2, callbacks=[Fails()])
    assert error.value.__notes__ == [
        "The error occurred in the validation of epoch 0 at batch 0 of 3, learning rate 0.01."
    ]
