"""Clipping, accumulation, half precision, mixing, averaging and compilation: kept, taken up again, put back."""

from __future__ import annotations

import pytest
import torch
from conftest import FailsAt, toy_data, toy_learner
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
    accuracy,
)
from minifast.training import EVENTS

HOW = {
    "clipping": lambda learn: learn.clip_grad(0.05),
    "accumulation": lambda learn: learn.callbacks.append(AccumulateScheduler(n_step=2)),
    "accumulation without tails": lambda learn: learn.callbacks.append(AccumulateScheduler(n_step=2, drop_last=True)),
    "float16": lambda learn: learn.to_fp16(loss_scale=2.0**21, max_noskip=2),  # some steps overflow
    "bfloat16": lambda learn: learn.to_bf16(),
    "mixing": lambda learn: learn.mixup(),
    "averaging": lambda learn: learn.callbacks.append(EMACallback(decay=0.9)),
}


def everything(learn: Learner) -> None:
    for name in ("clipping", "accumulation", "float16", "mixing", "averaging"):
        HOW[name](learn)


HOW["everything"] = everything


def learner(how: str, path) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    learn = Learner(toy_data(100, 20, shuffle=True), model, metrics=[accuracy], path=path, silent=True)
    HOW[how](learn)
    return learn


def outcome(learn: Learner) -> list:
    recorder = learn.recorder
    state = learn.opt.opt.state_dict()["state"]
    numbers = [value for one in state.values() for value in one.values() if isinstance(value, torch.Tensor)]
    tensors = [*learn.model.state_dict().values(), *learn.model.buffers(), *numbers]
    lists = [recorder.lrs, recorder.moms, list(recorder.raw_losses), recorder.val_losses, recorder.metrics]
    return [*(one.tolist() for one in tensors), *lists]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("batch", [1, 4, 5, 7, 13])
def test_a_run_taken_up_again_equals_one_that_was_left_alone(tmp_path, how, batch) -> None:
    alone = learner(how, tmp_path / "alone")
    alone.fit_one_cycle(3, 1e-2, callbacks=FailsAt(None))
    with pytest.raises(OSError, match="gone"):
        learner(how, tmp_path).fit_one_cycle(3, 1e-2, callbacks=FailsAt(batch), checkpoint="run", every=1)
    again = learner(how, tmp_path)
    torch.manual_seed(9)
    again.fit_one_cycle(3, 1e-2, callbacks=FailsAt(None), checkpoint="run", every=1)
    assert outcome(again) == outcome(alone)
    finished = learner(how, tmp_path)
    finished.fit_one_cycle(3, 1e-2, callbacks=FailsAt(None), checkpoint="run", every=1)
    assert outcome(finished) == outcome(alone)


@pytest.mark.parametrize(
    ("was", "is_", "words"),
    [
        (GradientClipping(clip=0.1), GradientClipping(clip=0.2), "clip=0.1 of GradientClipping, and here it is 0.2"),
        (AccumulateScheduler(n_step=2), AccumulateScheduler(n_step=3), "n_step=2 of AccumulateScheduler"),
        (MixUpCallback(alpha=0.1), MixUpCallback(alpha=0.2), "alpha=0.1 of MixUpCallback, and here it is 0.2"),
        (EMACallback(decay=0.9), EMACallback(), "decay=0.9 of EMACallback, and here it is 0.999"),
    ],
)
def test_a_run_goes_on_as_it_was_set_only(tmp_path, was, is_, words) -> None:
    toy_learner(path=tmp_path).fit(2, callbacks=was, checkpoint="run")
    toy_learner(path=tmp_path).fit(2, callbacks=was, checkpoint="run")
    with pytest.raises(CallbackError, match=f"The run was begun with {words}"):
        toy_learner(path=tmp_path).fit(2, callbacks=is_, checkpoint="run")


@pytest.mark.parametrize("how", HOW)
def test_the_finder_leaves_no_trace(tmp_path, how) -> None:
    def fitted(find):
        learn = learner(how, tmp_path)
        learn.fit(1, 1e-2)
        if find:
            before = str([callback.state_dict() for callback in learn.callbacks])
            learn.lr_find(num_it=12)
            assert str([callback.state_dict() for callback in learn.callbacks]) == before
        learn.fit(2, 1e-2)
        return outcome(learn)

    assert fitted(find=True) == fitted(find=False)


class RaisesAt(Callback):
    """Raises in one event, before others or after them."""

    def __init__(self, event: str, order: int) -> None:
        self._order = order
        setattr(self, event, self.fail)

    def fail(self):
        raise OSError("gone")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("order", [-1000, 9_000])
def test_an_error_in_any_event_puts_all_back(tmp_path, event, order) -> None:
    learn = learner("everything", tmp_path)
    loss_func, precision = learn.loss_func, learn.precision
    with pytest.raises(OSError, match="gone"):
        learn.fit(2, 1e-2, callbacks=[MixedPrecision(), RaisesAt(event, order)])
    assert learn.loss_func is loss_func
    assert learn.precision is precision
    assert not torch.is_autocast_enabled("cpu")
    assert all(parameter.grad is None for parameter in learn.model.parameters())
    learn.fit(1, 1e-2)  # and it can go on
    assert all(torch.isfinite(parameter).all() for parameter in learn.model.parameters())


@pytest.mark.parametrize("event", ["on_backward_end", "on_train_end"])
def test_an_error_in_one_fit_is_not_in_the_next(tmp_path, event) -> None:
    """What a callback of the learner holds of a fit that failed is not in the one after."""
    failed, alone = learner("everything", tmp_path), learner("everything", tmp_path)
    with pytest.raises(OSError, match="gone"):
        failed.fit(1, 1e-2, callbacks=RaisesAt(event, -1000))
    failed.model.load_state_dict(alone.model.state_dict())
    for one in (failed, alone):
        one.to_fp16()
        one.opt = None
        one.data = toy_data(100, 20)
        torch.manual_seed(0)
        one.fit(2, 1e-2)
    assert outcome(failed) == outcome(alone)


@pytest.mark.parametrize("make", [AccumulateScheduler, EMACallback, GradientClipping, MixUpCallback, MixedPrecision])
def test_each_is_made_by_callback_fns_and_without_a_learner(make) -> None:
    by_fns = toy_learner(callback_fns=make)
    by_fns.fit(2, 1e-2)
    given = toy_learner(callbacks=make())
    given.fit(2, 1e-2)
    assert outcome(by_fns) == outcome(given)


# --- compilation


def test_nothing_is_compiled_again_when_rates_change(tmp_path) -> None:
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


@pytest.mark.parametrize("method", ["to_fp16", "to_bf16"])
def test_a_compiled_model_follows_the_precision(method) -> None:
    compiled, plain = toy_learner().compile(backend="eager"), toy_learner()
    for one in (compiled, plain):
        one.fit(1, 1e-2)
        getattr(one, method)()
        one.fit(1, 1e-2)
        one.to_fp32()
        one.fit(1, 1e-2)
    assert outcome(compiled) == outcome(plain)


def test_layers_of_a_compiled_model_are_still_seen() -> None:
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
