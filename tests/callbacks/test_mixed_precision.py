"""Forward passes in float16 and bfloat16: what is computed in which type, the scale of the loss, what is restored."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from conftest import toy_data, toy_learner
from torch import nn

from minifast import Callback, GradientClipping, Learner, MinifastError, MixedPrecision, NonFiniteLossError, simple_ann


def weights(learn: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


class Types(Callback):
    """Notes what is of which type: the layer's output inside, the model's, the loss, whether autocast is on."""

    def __init__(self) -> None:
        self.seen = set()

    def note(self, name, value):
        self.seen.add((name, str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else value))

    def watch(self, learn: Learner) -> Types:
        learn.model[1].register_forward_hook(lambda module, inputs, output: self.note("layer", output))
        return self

    def on_loss_begin(self, last_output, train):
        self.note("output", last_output)
        self.note("autocast", torch.is_autocast_enabled("cpu"))

    def on_batch_end(self, last_loss):
        self.note("loss", last_loss)


HALVES = [("to_fp16", "float16"), ("to_bf16", "bfloat16")]


@pytest.mark.parametrize(("method", "dtype"), HALVES)
def test_layers_compute_in_half_and_the_rest_in_float32(method, dtype) -> None:
    learn = toy_learner()
    assert getattr(learn, method)() is learn
    types = Types().watch(learn)
    learn.callbacks.append(types)
    wanted = {("layer", dtype), ("output", "float32"), ("autocast", False), ("loss", "float32")}
    learn.fit(1, 1e-2)
    assert types.seen == wanted
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}
    types.seen.clear()
    learn.validate()
    assert types.seen == wanted
    types.seen.clear()
    predictions, _ = learn.get_preds()
    assert ("layer", dtype) in types.seen
    assert predictions.dtype == torch.float32
    types.seen.clear()
    learn.data.classes = ["a", "b"]
    learn.predict(torch.zeros(10))
    assert types.seen == {("layer", dtype)}
    learn.to_fp32()
    types.seen.clear()
    learn.fit(1, 1e-2)
    assert ("layer", "float32") in types.seen
    assert learn.callbacks == [types]


@pytest.mark.parametrize(("method", "dtype"), HALVES)
def test_it_trains_nearly_as_float32_does(method, dtype) -> None:
    plain, half = toy_learner(), toy_learner()
    getattr(half, method)()
    plain.fit_one_cycle(3, 1e-2)
    half.fit_one_cycle(3, 1e-2)
    assert not torch.equal(weights(plain), weights(half))
    assert half.recorder.val_losses == pytest.approx(plain.recorder.val_losses, rel=2e-2)
    assert half.validate()[0] == pytest.approx(half.recorder.val_losses[-1], rel=1e-6)


class Reads(Callback):
    """Notes the loss and the norm of the gradients, as callbacks see them."""

    def __init__(self, learn: Learner) -> None:
        self.learn, self.losses, self.norms = learn, [], []

    def on_backward_end(self, last_loss, skip_step):
        if not skip_step:
            self.losses.append(last_loss.item())
            self.norms.append(torch.cat([p.grad.flatten() for p in self.learn.model.parameters()]).norm().item())

    def on_batch_end(self, train, last_loss):
        if train and self.losses:
            assert last_loss.item() == self.learn.recorder.raw_losses[-1]


def test_callbacks_see_neither_a_scaled_loss_nor_scaled_gradients() -> None:
    def read(*callbacks, half):
        learn = toy_learner()
        reads = Reads(learn)
        if half:
            learn.to_fp16(loss_scale=1024)
        learn.fit(2, 1e-3, callbacks=[*callbacks, reads])
        return reads

    half, plain = read(half=True), read(half=False)
    assert half.losses == pytest.approx(plain.losses, rel=1e-2)
    assert half.norms == pytest.approx(plain.norms, rel=2e-2)
    clipped = read(GradientClipping(clip=0.01), half=True)
    assert clipped.norms == pytest.approx([0.01] * 6, rel=1e-3)


class Overflows(Callback):
    """Makes the gradients of some batches infinite in the backward pass."""

    _order = -35

    def __init__(self, *at: int) -> None:
        self.at = at

    def on_loss_begin(self, iteration, train, last_output):
        if train and iteration in self.at:
            last_output.register_hook(lambda gradient: gradient * float("inf"))


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    learn = toy_learner(n=100, bs=10).to_fp16(loss_scale=1024, max_noskip=3)
    seen = []

    class Notes(Callback):
        def on_batch_begin(self, train):
            if train:
                seen.append((weights(learn), learn.mixed_precision.loss_scale, learn.opt.lr))

    learn.fit_one_cycle(1, 1e-2, callbacks=[Notes(), Overflows(0, 1, 6)])
    states, scales, rates = zip(*seen, strict=True)
    assert torch.equal(states[0], states[2])
    assert torch.equal(states[6], states[7])
    assert not torch.equal(states[2], states[3])
    assert scales == (1024, 512, 256, 256, 256, 512, 512, 256, 256, 256)
    assert rates[0] == rates[1] == rates[2] < rates[3], "the schedule stands still"
    assert rates[6] == rates[7] > rates[8]
    plain = toy_learner(n=100, bs=10)
    plain.fit_one_cycle(1, 1e-2)
    assert rates[3:7] + rates[8:] == pytest.approx(plain.recorder.lrs[3:7] + plain.recorder.lrs[8:], abs=1e-15)


def test_the_scale_goes_on_in_the_next_fit() -> None:
    learn = toy_learner().to_fp16(loss_scale=1024, max_noskip=4)
    learn.fit(1, callbacks=Overflows(0))
    assert learn.mixed_precision.loss_scale == 512
    learn.fit(1)  # the fourth and fifth step in a row
    assert learn.mixed_precision.loss_scale == 1024


def test_lr_find_restores_the_scale() -> None:
    learn = toy_learner().to_fp16(loss_scale=1024, max_noskip=2)
    learn.fit(1)
    before = (learn.mixed_precision.loss_scale, dict(learn.mixed_precision._saved))
    learn.lr_find(num_it=20)
    assert (learn.mixed_precision.loss_scale, learn.mixed_precision._saved) == before
    assert learn.precision is torch.float16
    alone = toy_learner().to_fp16(loss_scale=1024, max_noskip=2)
    for one in (learn, alone):
        one.fit(1) if one is learn else [one.fit(1), one.fit(1)]
    assert torch.equal(weights(alone), weights(learn))


def test_gradients_that_no_scale_helps_are_an_error() -> None:
    learn = toy_learner(n=600, bs=10).to_fp16(loss_scale=16)
    with pytest.raises(NonFiniteLossError, match="gradients are NaN or infinite, though each loss was finite"):
        learn.fit(1, callbacks=Overflows(*range(60)))
    assert learn.mixed_precision.loss_scale == 16
    learn.fit(1)


def test_a_loss_that_is_not_finite_still_ends_the_fit() -> None:
    class Spoils(Callback):
        def on_loss_begin(self, iteration, train, last_output):
            return {"last_output": last_output * float("nan")} if train and iteration == 1 else None

    with pytest.raises(NonFiniteLossError, match="training loss is nan at epoch 0, batch 1"):
        toy_learner().to_fp16().fit(1, callbacks=Spoils())


class Large(nn.Module):
    def forward(self, x):
        return x * (1e4 if x.dtype == torch.float16 else 1)


@pytest.mark.filterwarnings("ignore:The weights")
def test_the_layer_that_overflows_in_float16_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 4), Large(), Large(), nn.Linear(4, 2))
    learn = Learner(toy_data(), model, silent=True).to_fp16()
    with pytest.raises(NonFiniteLossError, match=r"first output that is not finite is that of 2 \(Large\)"):
        learn.fit(1)


def test_it_is_a_callback_of_one_fit_too() -> None:
    learn = toy_learner()
    types = Types().watch(learn)
    learn.fit(1, callbacks=[MixedPrecision(), types])
    assert ("layer", "float16") in types.seen
    assert learn.precision is None
    short = toy_learner().to_fp16()
    short.fit(1)
    assert torch.equal(weights(short), weights(learn))


@pytest.mark.parametrize("where", ["forward", "validate", "get_preds", "predict"])
def test_an_error_in_the_model_leaves_autocast_off(where) -> None:
    learn = toy_learner().to_bf16()

    def fails(module, inputs):
        raise OSError("gone")

    learn.model[1].register_forward_pre_hook(fails)
    call = {"forward": lambda: learn.fit(1), "predict": lambda: learn.predict(torch.zeros(10))}
    with pytest.raises(OSError, match="gone"):
        call.get(where, getattr(learn, where, None))()
    assert not torch.is_autocast_enabled("cpu")


def test_outputs_that_are_several_come_as_float32() -> None:
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(10, 2), nn.Linear(10, 2)

        def forward(self, x):
            return {"first": self.one(x)}, [self.other(x), "text"]

    learn = Learner(toy_data(), Two(), silent=True).to_bf16()
    first, (second, text) = learn.output_of(torch.zeros(3, 10))
    assert (first["first"].dtype, second.dtype, text) == (torch.float32, torch.float32, "text")


def test_outputs_keep_their_kind() -> None:
    class Named(NamedTuple):
        one: torch.Tensor
        other: torch.Tensor

    class Output(OrderedDict):
        @property
        def logits(self):
            return self["logits"]

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(10, 2)

        def forward(self, x):
            return Named(self.layer(x), x), Output(logits=self.layer(x))

    named, output = Learner(toy_data(), Both(), silent=True).to_bf16().output_of(torch.zeros(3, 10))
    assert named.one.dtype == output.logits.dtype == torch.float32


def test_float16_weights_raise() -> None:
    learn = Learner(toy_data(), simple_ann(10, 2).half(), silent=True).to_fp16()
    with pytest.raises(MinifastError, match=r"weights are float16 .*call model.float\(\)"):
        learn.fit(1)


def test_another_precision_is_another_run(tmp_path) -> None:
    toy_learner(path=tmp_path).to_bf16().fit(1, checkpoint="run")
    with pytest.raises(MinifastError, match=r"its model has precision = 'torch.bfloat16', and this run has 'absent'"):
        toy_learner(path=tmp_path).fit(1, checkpoint="run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"loss_scale": 0}, "`loss_scale` must be positive, got 0"), ({"max_noskip": 0}, "max_nosk")],
)
def test_arguments_are_checked(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        toy_learner().to_fp16(**arguments)
