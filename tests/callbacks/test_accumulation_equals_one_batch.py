"""An accumulated step is the step of one big batch, whatever the loss counts and however the batches are cut."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from conftest import FailsAt, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from minifast import AccumulateScheduler, Callback, DataBunch, GradientClipping, Learner, MixedPrecision, read_history
from minifast.callbacks import accumulation

WEIGHT = torch.tensor([0.1, 1.0, 10.0])


def of_dict(output, target):
    return (output[:, 0] - target["a"]).square().mean() + (output[:, 1] - target["b"]).abs().mean()


def counted(targets, generator):
    return targets.masked_fill(torch.rand(targets.shape, generator=generator) < 0.5, -100)


LOSSES = {
    "cross entropy": nn.CrossEntropyLoss(),
    "class weights": nn.CrossEntropyLoss(WEIGHT),
    "smoothed": nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.3),
    "summed": nn.CrossEntropyLoss(WEIGHT, reduction="sum"),
    "bound": partial(functional.cross_entropy, weight=WEIGHT),
    "elements": nn.MSELoss(),
    "pos_weight": nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
    "dict": of_dict,
}


def targets_of(name: str, n: int, generator: torch.Generator):
    if name == "dict":
        return {key: torch.randn(n, generator=generator) for key in "ab"}
    if name in ("elements", "pos_weight"):
        return torch.rand(n, 3, generator=generator)
    return counted(torch.randint(3, (n,), generator=generator), generator)


def cut(values, sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    if isinstance(values, dict):
        parts = {key: cut(value, sizes) for key, value in values.items()}
        return [{key: parts[key][i] for key in parts} for i in range(len(sizes))]
    return [values[b - n : b] for b, n in zip(ends, sizes, strict=True)]


class Gradients(Callback):
    """Stores the gradient of each step."""

    _order = 10

    def __init__(self, model: nn.Module) -> None:
        self.model, self.steps = model, []

    def on_backward_end(self, skip_step) -> None:
        if not skip_step:
            self.steps.append(torch.cat([p.grad.flatten().clone() for p in self.model.parameters()]))


def steps_of(batches, loss, *callbacks, epochs=1, scale=1.0) -> tuple[list[torch.Tensor], Learner]:
    torch.manual_seed(1)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.mul_(scale)
    data = DataBunch(batches, device="cpu", loss_func=loss)
    learn = Learner(data, model, torch.optim.SGD, wd=0, silent=True)
    gradients = Gradients(model)
    learn.fit(epochs, 0.1, callbacks=[*callbacks, gradients])
    return gradients.steps, learn


def first_output(x: torch.Tensor) -> torch.Tensor:
    """Return the output of the model that ``steps_of`` trains, before its first step."""
    torch.manual_seed(1)
    return nn.Linear(4, 3)(x)


@pytest.mark.parametrize(
    "name", ["cross entropy", "smoothed", "pos_weight", "dict", *slow("class weights", "summed", "bound", "elements")]
)
@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_a_step_is_that_of_one_big_batch(name, sizes, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(sum(sizes), 4, generator=generator), targets_of(name, sum(sizes), generator)
    if isinstance(y, torch.Tensor) and y.dtype is torch.int64:
        y[-1] = 2  # of all samples, at least one counts
    small = list(zip(cut(x, sizes), cut(y, sizes), strict=True))
    (one,), whole = steps_of([(x, y)], LOSSES[name])
    (several,), parts = steps_of(small, LOSSES[name], AccumulateScheduler(n_step=len(sizes)))
    assert torch.allclose(several, one, rtol=1e-4, atol=1e-6)
    assert parts.recorder.rows[0][1] == pytest.approx(whole.recorder.rows[0][1], rel=1e-4, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(n_batches=st.integers(1, 9), n_step=st.integers(1, 4), drop_last=st.booleans(), seed=st.integers(0, 1000))
def test_each_step_is_that_of_its_batches(n_batches, n_step, drop_last, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [4] * n_batches
    x, y = torch.randn(sum(sizes), 4, generator=generator), targets_of("class weights", sum(sizes), generator)
    y[::4] = 1
    whole = n_batches // n_step * n_step if drop_last else n_batches
    if not whole:
        return
    big = [4 * n_step] * (whole // n_step) + ([4 * (whole % n_step)] if whole % n_step else [])
    loss = LOSSES["class weights"]
    x_big, y_big = x[: 4 * whole], y[: 4 * whole]
    expected, of_big = steps_of(list(zip(cut(x_big, big), cut(y_big, big), strict=True)), loss, epochs=2)
    accumulate = AccumulateScheduler(n_step=n_step, drop_last=drop_last)
    small = list(zip(cut(x, sizes), cut(y, sizes), strict=True))
    steps, of_small = steps_of(small, loss, accumulate, epochs=2)
    assert len(steps) == len(expected)
    for step, other in zip(steps, expected, strict=True):
        assert torch.allclose(step, other, rtol=1e-4, atol=1e-5)
    if whole == n_batches:
        ends = [*range(n_step - 1, n_batches - 1, n_step), n_batches - 1]
        losses = [of_small.recorder.losses[epoch * n_batches + end] for epoch in range(2) for end in ends]
        assert losses == pytest.approx(of_big.recorder.losses, rel=1e-4)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_batch_that_counts_nothing_adds_nothing(empty) -> None:
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    y[4 * empty : 4 * empty + 4] = -100
    (one,), _ = steps_of([(x, y)], nn.CrossEntropyLoss())
    (several,), learn = steps_of(
        list(zip(x.split(4), y.split(4), strict=True)), nn.CrossEntropyLoss(), AccumulateScheduler(n_step=3)
    )
    assert torch.allclose(several, one, rtol=1e-5, atol=1e-7)
    assert learn.recorder.raw_losses[empty] == 0.0
    assert all(map(math.isfinite, learn.recorder.losses))
    expected = torch.nn.functional.cross_entropy(first_output(x), y)
    assert learn.recorder.rows[-1][1] == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("loss", "at"),
    [
        *(("class weights", 1), ("summed", 4)),
        *slow(("class weights", 2), ("class weights", 4), ("summed", 1), ("summed", 2)),
    ],
)
def test_the_losses_of_steps_survive_a_resume_and_a_file(tmp_path, loss, at) -> None:
    def run(fails_at, path, **options) -> Learner:
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(14, 4, generator=generator), torch.arange(14) % 3
        data = DataBunch(list(zip(cut(x, [2, 5, 7]), cut(y, [2, 5, 7]), strict=True)), device="cpu")
        torch.manual_seed(1)
        learn = Learner(data, nn.Linear(4, 3), loss_func=LOSSES[loss], path=path, silent=True)
        learn.fit(2, 0.1, callbacks=[AccumulateScheduler(n_step=3), FailsAt(fails_at)], **options)
        return learn

    plain = run(None, tmp_path / "plain")
    with pytest.raises(OSError, match="gone"):
        run(at, tmp_path, checkpoint="run", every=1)
    learn = run(None, tmp_path, checkpoint="run", every=1)
    assert learn.recorder.losses == plain.recorder.losses
    learn.history.to_json(tmp_path / "history.json")
    assert read_history(tmp_path / "history.json")[0].losses == plain.recorder.losses


@pytest.mark.parametrize("empty", [None, 0, 2])
def test_weights_that_stay_on_a_device_give_the_same_step(monkeypatch, empty) -> None:
    x, y = torch.randn(11, 4), torch.arange(11) % 3
    if empty is not None:
        y[4 * empty : 4 * empty + 4] = -100
    batches = list(zip(x.split(4), y.split(4), strict=True))
    plain, learn = steps_of(batches, nn.CrossEntropyLoss(WEIGHT), AccumulateScheduler(n_step=2))
    weigh = accumulation.loss_weight
    monkeypatch.setattr(accumulation, "loss_weight", lambda *args: torch.tensor(weigh(*args)))
    on_device, other = steps_of(batches, nn.CrossEntropyLoss(WEIGHT), AccumulateScheduler(n_step=2))
    for a, b in zip(plain, on_device, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert learn.recorder.raw_losses == pytest.approx(other.recorder.raw_losses)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(WEIGHT)])
def test_in_float16_a_step_is_that_in_float32(loss, clip) -> None:
    """The scale of the loss comes out of the gradient of the whole step, after its last batch."""
    x, y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
    batches = list(zip(x.split(5), y.split(5), strict=True))
    for order in (0, 1):
        clipping = [GradientClipping(clip=clip)] if clip else []
        full, _ = steps_of(batches, loss, AccumulateScheduler(n_step=2), *clipping, epochs=2)
        callbacks = [AccumulateScheduler(n_step=2), MixedPrecision(loss_scale=2.0**10)]
        half, learn = steps_of(batches, loss, *callbacks[:: -1 if order else 1], *clipping, epochs=2)
        assert len(half) == len(full) == 6
        for a, b in zip(half, full, strict=True):
            assert torch.allclose(a, b, rtol=0.02, atol=2e-3)
        assert learn.mixed_precision.loss_scale == 2.0**10
