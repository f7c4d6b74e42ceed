"""Gradient clipping, accumulation, mixed precision, Mixup, EMA and compilation: resume, restore, combine."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import FailsAt, slow, toy_data, toy_learner
from torch import nn

from minifast import (
    AccumulateScheduler,
    Callback,
    CallbackError,
    EMACallback,
    GradientClipping,
    Learner,
    MixedPrecision,
    MixUpCallback,
    RunCheckpoint,
    accuracy,
)
from minifast.training import EVENTS

OPTIONS = {
    "clipping": lambda learn: learn.clip_grad(0.05),
    "accumulation": lambda learn: learn.callbacks.append(AccumulateScheduler(n_step=2)),
    "accumulation without tails": lambda learn: learn.callbacks.append(AccumulateScheduler(n_step=2, drop_last=True)),
    "float16": lambda learn: learn.to_fp16(loss_scale=2.0**21, max_noskip=2),  # some steps overflow
    "bfloat16": lambda learn: learn.to_bf16(),
    "mixup": lambda learn: learn.mixup(),
    "ema": lambda learn: learn.callbacks.append(EMACallback(decay=0.9)),
}


def add_all(learn: Learner) -> None:
    for name in ("clipping", "accumulation", "float16", "mixup", "ema"):
        OPTIONS[name](learn)


OPTIONS["all"] = add_all


def learner(option: str, path) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    learn = Learner(toy_data(100, 20, shuffle=True), model, metrics=[accuracy], path=path, silent=True)
    OPTIONS[option](learn)
    return learn


def outcome(learn: Learner) -> list:
    recorder = learn.recorder
    state = learn.opt.opt.state_dict()["state"]
    moments = [value for values in state.values() for value in values.values() if isinstance(value, torch.Tensor)]
    tensors = [*learn.model.state_dict().values(), *learn.model.buffers(), *moments]
    lists = [recorder.lrs, recorder.moms, list(recorder.raw_losses), recorder.val_losses, recorder.metrics]
    return [*(tensor.tolist() for tensor in tensors), *lists]


QUICK = ["accumulation without tails", "bfloat16", "all"]  # "all" has the others
LONG = [option for option in OPTIONS if option not in QUICK]


@pytest.mark.parametrize("option", [*QUICK, *slow(*LONG)])
@pytest.mark.parametrize("batch", [7, *slow(1, 4, 5, 13)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, option, batch) -> None:
    alone = learner(option, tmp_path / "alone")
    alone.fit_one_cycle(3, 1e-2, callbacks=FailsAt(None))
    with pytest.raises(OSError, match="gone"):
        learner(option, tmp_path).fit_one_cycle(3, 1e-2, callbacks=FailsAt(batch), checkpoint="run", every=1)
    again = learner(option, tmp_path)
    torch.manual_seed(9)
    again.fit_one_cycle(3, 1e-2, callbacks=FailsAt(None), checkpoint="run", every=1)
    assert outcome(again) == outcome(alone)
    finished = learner(option, tmp_path)
    finished.fit_one_cycle(3, 1e-2, callbacks=FailsAt(None), checkpoint="run", every=1)
    assert outcome(finished) == outcome(alone)


@pytest.mark.parametrize(
    ("was", "is_", "words"),
    [
        (GradientClipping(clip=0.1), GradientClipping(clip=0.2), "clip=0.1 of GradientClipping, and now it is 0.2"),
        (AccumulateScheduler(n_step=2), AccumulateScheduler(n_step=3), "n_step=2 of AccumulateScheduler"),
        (MixUpCallback(alpha=0.1), MixUpCallback(alpha=0.2), "alpha=0.1 of MixUpCallback, and now it is 0.2"),
        (EMACallback(decay=0.9), EMACallback(), "decay=0.9 of EMACallback, and now it is 0.999"),
    ],
)
def test_a_run_resumes_only_with_the_same_settings(tmp_path, was, is_, words) -> None:
    toy_learner(path=tmp_path).fit(2, callbacks=was, checkpoint="run")
    toy_learner(path=tmp_path).fit(2, callbacks=was, checkpoint="run")
    with pytest.raises(CallbackError, match=f"The run was started with {words}"):
        toy_learner(path=tmp_path).fit(2, callbacks=is_, checkpoint="run")


@pytest.mark.parametrize("option", [*QUICK, *slow(*LONG)])
def test_lr_find_restores_all_state(tmp_path, option) -> None:
    def fitted(find):
        learn = learner(option, tmp_path)
        learn.fit(1, 1e-2)
        if find:
            before = str([callback.state_dict() for callback in learn.callbacks])
            learn.lr_find(num_it=12)
            assert str([callback.state_dict() for callback in learn.callbacks]) == before
        learn.fit(2, 1e-2)
        return outcome(learn)

    assert fitted(find=True) == fitted(find=False)


class RaisesAt(Callback):
    """Raise an error in one event, before or after the other callbacks."""

    def __init__(self, event: str, order: int) -> None:
        self._order = order
        setattr(self, event, self.fail)

    def fail(self):
        raise OSError("gone")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("order", [-1000, 9_000])
def test_an_error_in_any_event_restores_loss_and_precision(tmp_path, event, order) -> None:
    learn = learner("all", tmp_path)
    loss_func, precision = learn.loss_func, learn.precision
    with pytest.raises(OSError, match="gone"):
        learn.fit(2, 1e-2, callbacks=[MixedPrecision(), RaisesAt(event, order)])
    assert learn.loss_func is loss_func
    assert learn.precision is precision
    assert not torch.is_autocast_enabled("cpu")
    assert all(parameter.grad is None for parameter in learn.model.parameters())
    learn.fit(1, 1e-2)  # training is possible again
    assert all(torch.isfinite(parameter).all() for parameter in learn.model.parameters())


@pytest.mark.parametrize("event", ["on_backward_end", "on_train_end"])
def test_an_error_in_one_fit_does_not_change_the_next(tmp_path, event) -> None:
    failed, alone = learner("all", tmp_path), learner("all", tmp_path)
    with pytest.raises(OSError, match="gone"):
        failed.fit(1, 1e-2, callbacks=RaisesAt(event, -1000))
    failed.model.load_state_dict(alone.model.state_dict())
    for learn in (failed, alone):
        learn.to_fp16()
        learn.opt = None
        learn.data = toy_data(100, 20)
        torch.manual_seed(0)
        learn.fit(2, 1e-2)
    assert outcome(failed) == outcome(alone)


@pytest.mark.parametrize("make", [AccumulateScheduler, EMACallback, GradientClipping, MixUpCallback, MixedPrecision])
def test_a_callback_may_come_from_callback_fns_or_be_an_instance(make) -> None:
    by_fns = toy_learner(callback_fns=make)
    by_fns.fit(2, 1e-2)
    given = toy_learner(callbacks=make())
    given.fit(2, 1e-2)
    assert outcome(by_fns) == outcome(given)


# --- compilation


def test_a_change_of_the_learning_rate_does_not_recompile(tmp_path) -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = toy_learner(n=50, path=tmp_path)  # batches of 20, 20 and 10
    assert compiled.compile(backend=counter) is compiled
    compiled.fit_one_cycle(1, 1e-2)
    first = counter.frame_count
    assert 2 <= first <= 4  # training and evaluation, and another size
    compiled.lr_find(num_it=20)
    compiled.fit_one_cycle(3, 1e-2)
    compiled.validate()
    compiled.get_preds()
    assert counter.frame_count == first
    plain = toy_learner(n=50, path=tmp_path)
    plain.fit_one_cycle(1, 1e-2)
    plain.fit_one_cycle(3, 1e-2)
    assert outcome(compiled) == outcome(plain)
    compiled.save("compiled")
    assert equal_weights(toy_learner(path=tmp_path).load("compiled"), compiled)


def equal_weights(a: Learner, b: Learner) -> bool:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", ["to_fp16", *slow("to_bf16")])
def test_a_compiled_model_follows_the_precision(method) -> None:
    compiled, plain = toy_learner().compile(backend="eager"), toy_learner()
    for learn in (compiled, plain):
        learn.fit(1, 1e-2)
        getattr(learn, method)()
        learn.fit(1, 1e-2)
        learn.to_fp32()
        learn.fit(1, 1e-2)
    assert outcome(compiled) == outcome(plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, while compiling
def test_the_layers_of_a_compiled_model_are_visible() -> None:
    from minifast import NonFiniteLossError

    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt() if self.training and x.mean() < 1e9 else x

    torch.manual_seed(0)
    learn = Learner(toy_data(), nn.Sequential(nn.Linear(10, 4), Root(), nn.Linear(4, 2)), silent=True)
    before = str(learn.summary())
    learn.compile(backend="eager")
    assert str(learn.summary()) == before
    assert "Root" in before
    with pytest.raises(NonFiniteLossError, match=r"first output that is not finite is that of 1 \(Root\)"):
        learn.fit(1, 1e-2)


# --- shared arguments, return values and aliases

TRAIN = {
    "fit": lambda learn, **options: learn.fit(2, 1e-2, **options),
    "fit_one_cycle": lambda learn, **options: learn.fit_one_cycle(2, 1e-2, **options),
    "fit_schedule": lambda learn, **options: learn.fit_schedule(2, 1e-2, **options),
}


@pytest.mark.parametrize("method", TRAIN)
def test_each_way_to_train_returns_its_recorder(method) -> None:
    learn = toy_learner()
    recorder = TRAIN[method](learn)
    assert recorder is learn.recorder is learn.history[-1]
    assert len(recorder.val_losses) == 2
    assert TRAIN[method](learn) is not recorder


def test_resume_returns_the_recorder(tmp_path) -> None:
    with pytest.raises(OSError, match="gone"):
        toy_learner(path=tmp_path).fit(2, 1e-2, callbacks=FailsAt(4), checkpoint="run", every=1)
    learn = toy_learner(path=tmp_path)
    assert learn.resume("run", callbacks=FailsAt(None)) is learn.recorder
    assert len(learn.recorder.val_losses) == 2


RUN_OPTIONS = [{"every": 2}, {"resume": False}, {"on_write_error": "stop"}, {}]
QUICK_RUNS = list(zip([*TRAIN, "fit"], RUN_OPTIONS, strict=True))  # each method and each option once


@pytest.mark.parametrize(
    ("method", "options"),
    [*QUICK_RUNS, *slow(*(case for case in itertools.product(TRAIN, RUN_OPTIONS) if case not in QUICK_RUNS))],
)
def test_a_run_checkpoint_is_the_same_as_separate_arguments(tmp_path, method, options) -> None:
    TRAIN[method](toy_learner(path=tmp_path / "a"), checkpoint="run", **options)
    TRAIN[method](toy_learner(path=tmp_path / "b"), checkpoint=RunCheckpoint("run", **options))
    a, b = ((tmp_path / name / "models" / "run.checkpoint") for name in "ab")
    assert a.is_file()
    assert b.is_file()
    for path, option in ((a, {"checkpoint": "run", **options}), (b, {"checkpoint": RunCheckpoint("run", **options)})):
        again = toy_learner(path=path.parents[1])
        TRAIN[method](again, **option)
        assert len(again.recorder.val_losses) == 2


@pytest.mark.parametrize("method", TRAIN)
@pytest.mark.parametrize("options", [{"every": 2}, {"resume": False}, {"on_write_error": "stop"}])
def test_a_run_checkpoint_and_separate_arguments_together_are_an_error(tmp_path, method, options) -> None:
    learn = toy_learner(path=tmp_path)
    with pytest.raises(ValueError, match="RunCheckpoint"):
        TRAIN[method](learn, checkpoint=RunCheckpoint("run"), **options)
    assert not learn.history
    assert not list(tmp_path.iterdir())


def test_cyc_len_is_another_name_of_epochs() -> None:
    a, b = toy_learner(), toy_learner()
    a.fit_one_cycle(epochs=2, max_lr=1e-2)
    b.fit_one_cycle(cyc_len=2, max_lr=1e-2)
    assert outcome(a) == outcome(b)
    figure = a.plot_schedule(cyc_len=2, return_fig=True)
    assert len(figure.axes[0].lines[0].get_xdata()) == 2 * len(a.data.train_dl)
    for method in (a.fit_one_cycle, a.plot_schedule):
        with pytest.raises(TypeError, match="got `cyc_len` and `epochs`, two names of one argument"):
            method(epochs=2, cyc_len=2)


def test_methods_that_change_the_learner_return_it() -> None:
    learn = toy_learner()
    assert learn.split(lambda model: [model[3]]) is learn
    for method in (learn.freeze, learn.unfreeze, learn.clip_grad, learn.mixup, learn.to_fp16, learn.to_bf16):
        assert method() is learn
    assert learn.to_fp32().freeze_to(1).init(nn.init.zeros_) is learn


def test_callbacks_have_a_name_without_a_suffix_too() -> None:
    import minifast
    from minifast import callbacks

    names = ["EMA", "EarlyStopping", "MixUp", "ReduceLROnPlateau", "SaveModel", "TensorBoard", "TerminateOnNaN"]
    pairs = {name: f"{name}Callback" for name in [*names, "Tracker"]} | {"GradientAccumulation": "AccumulateScheduler"}
    for name, original in pairs.items():
        assert getattr(minifast, name) is getattr(callbacks, name) is getattr(callbacks, original)
        assert getattr(callbacks, name).__name__ == original  # checkpoints store this name
        assert name not in minifast.__all__


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [("_watches", "fit_only", True), ("_sets", "controls", ("lr",)), ("_settings", "must_match", ("a",))],
)
def test_the_old_names_of_the_callback_protocol_warn_and_work(old, new, value) -> None:
    with pytest.warns(
        DeprecationWarning, match=rf"Mine\.{old} is now called {new}; the old name will be removed in version 0.3"
    ):
        mine = type("Mine", (Callback,), {old: value})
    assert getattr(mine, new) == value
