"""Gradient accumulation and gradient clipping."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import toy_data, toy_items, toy_learner
from torch import nn
from torch.utils.data import DataLoader

from minifast import AccumulateScheduler, Callback, DataBunch, GradientClipping, Learner, MinifastError, simple_ann

SGD = torch.optim.SGD


def weights(learn: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


class Steps(Callback):
    """Records the gradient of each optimizer step and the index of its last batch."""

    _order = 10

    def __init__(self, learn: Learner) -> None:
        self.model, self.gradients, self.batches = learn.model, [], []

    def on_backward_end(self, skip_step, iteration):
        if not skip_step:
            self.batches.append(iteration)
            self.gradients.append(torch.cat([p.grad.flatten().clone() for p in self.model.parameters()]))


def trained(n: int, bs: int, *callbacks: Callback, epochs: int = 2, loss=None, model=None) -> tuple[Learner, Steps]:
    torch.manual_seed(0)
    model = model or simple_ann(10, 2, 8)
    learn = Learner(toy_data(n, bs), model, SGD, loss or nn.CrossEntropyLoss(), silent=True)
    steps = Steps(learn)
    learn.fit(epochs, 0.5, callbacks=[*callbacks, steps])
    return learn, steps


# --- accumulation


@pytest.mark.parametrize(
    ("n", "few", "many"),
    [
        (40, 10, 20),  # two batches a step
        (50, 10, 20),  # a tail of one whole batch
        (35, 10, 20),  # a window of a whole batch and a smaller one
        (25, 10, 20),  # a tail of one smaller batch
        (60, 10, 60),  # an epoch a step
    ],
)
def test_an_accumulated_step_equals_one_big_batch(n, few, many) -> None:
    one, alone = trained(n, many)
    several, steps = trained(n, few, AccumulateScheduler(n_step=many // few))
    assert len(steps.gradients) == len(alone.gradients)
    for mine, theirs in zip(steps.gradients, alone.gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6, rtol=0)
    assert torch.allclose(weights(several), weights(one), atol=1e-6, rtol=0)


def test_batches_are_weighted_by_their_samples() -> None:
    x, y = toy_items(30).tensors
    cuts = [0, 1, 10, 13, 30]
    batches = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(cuts)]

    def fitted(batches, *callbacks):
        torch.manual_seed(0)
        data = DataBunch(batches, device="cpu")
        learn = Learner(data, simple_ann(10, 2, 8), SGD, nn.CrossEntropyLoss(), silent=True)
        learn.fit(2, 0.5, callbacks=callbacks)
        return weights(learn)

    assert torch.allclose(fitted(batches, AccumulateScheduler(n_step=4)), fitted([(x, y)]), atol=1e-6, rtol=0)


def test_gradients_of_a_sum_are_added() -> None:
    loss = nn.CrossEntropyLoss(reduction="sum")
    _, single = trained(50, 20, loss=loss, epochs=1)
    _, accumulated = trained(50, 10, AccumulateScheduler(n_step=2), loss=loss, epochs=1)
    assert torch.allclose(single.gradients[0], accumulated.gradients[0], atol=1e-4, rtol=1e-5)
    assert len(single.gradients) == len(accumulated.gradients)


def test_n_step_1_is_bitwise_identical_to_no_accumulation() -> None:
    alone, _ = trained(50, 20)
    one, _ = trained(50, 20, AccumulateScheduler())
    assert torch.equal(weights(alone), weights(one))


def test_the_last_batches_of_an_epoch_make_a_step_or_are_dropped() -> None:
    _, steps = trained(50, 10, AccumulateScheduler(n_step=2))
    assert steps.batches == [1, 3, 4, 6, 8, 9]
    learn, steps = trained(50, 10, AccumulateScheduler(n_step=2, drop_last=True))
    assert steps.batches == [1, 3, 6, 8]
    whole, _ = trained(40, 10, AccumulateScheduler(n_step=2))
    assert torch.equal(weights(learn), weights(whole)), "nothing of the tail is in the next step"


def test_gradients_of_an_epoch_that_ended_early_are_dropped() -> None:
    class Stops(Callback):
        def __init__(self, after):
            self.after = after

        def on_batch_end(self, num_batch, train):
            return {"stop_epoch": True} if train and num_batch == self.after else None

    learn, steps = trained(60, 10, AccumulateScheduler(n_step=2), Stops(2))
    whole, _ = trained(60, 10, AccumulateScheduler(n_step=2), Stops(1))
    assert steps.batches == [1, 4]
    assert torch.equal(weights(learn), weights(whole))


def test_stop_epoch_before_the_backward_pass_makes_a_step() -> None:
    class Stops(Callback):
        _order = -50

        def on_batch_begin(self, num_batch, train):
            return {"stop_epoch": True} if train and num_batch == 2 else None

    _, steps = trained(60, 10, AccumulateScheduler(n_step=2), Stops())
    assert steps.batches == [1, 2, 4, 5]


def test_a_batch_without_a_backward_pass_does_not_count() -> None:
    class Skips(Callback):
        def on_backward_begin(self, num_batch):
            return {"skip_bwd": True} if num_batch == 1 else None

    learn, steps = trained(40, 10, AccumulateScheduler(n_step=3), Skips(), epochs=1)
    assert steps.batches == [3]
    x, y = toy_items(40).tensors
    torch.manual_seed(0)
    model = simple_ann(10, 2, 8)
    keep = torch.cat([torch.arange(10), torch.arange(20, 40)])
    other = Learner(DataBunch([(x[keep], y[keep])], device="cpu"), model, SGD, nn.CrossEntropyLoss(), silent=True)
    other.fit(1, 0.5)
    assert torch.allclose(weights(learn), weights(other), atol=1e-6, rtol=0)


def test_sparse_gradients_are_averaged_too() -> None:
    x, y = torch.arange(30) % 5, torch.arange(30) % 2

    def fitted(bs, *callbacks):
        torch.manual_seed(0)
        data = DataBunch([(x[i : i + bs], y[i : i + bs]) for i in range(0, 30, bs)], device="cpu")
        model = nn.Embedding(5, 2, sparse=True)
        learn = Learner(data, model, SGD, nn.CrossEntropyLoss(), wd=0.0, silent=True)
        learn.fit(1, 0.5, callbacks=callbacks)
        return weights(learn)

    assert torch.allclose(fitted(10, AccumulateScheduler(n_step=2)), fitted(20), atol=1e-6, rtol=0)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_schedule_is_that_of_the_big_batches(epochs) -> None:
    def fitted(bs, *callbacks):
        learn = toy_learner(n=200, bs=bs, opt_func=torch.optim.SGD)
        learn.fit_one_cycle(epochs, 0.5, callbacks=callbacks)
        return learn

    several, one = fitted(5, AccumulateScheduler(n_step=4)), fitted(20)
    assert several.recorder.lrs[::4] == pytest.approx(one.recorder.lrs, abs=1e-12)
    assert torch.allclose(weights(several), weights(one), atol=1e-6, rtol=0)


def test_lr_find_counts_steps_and_restores_the_callback() -> None:
    accumulate = AccumulateScheduler(n_step=2)
    learn = toy_learner(n=50, bs=10, callbacks=accumulate)
    found = learn.lr_find(num_it=6, stop_div=False)
    assert len(found.lrs) == 6
    assert learn.recorder.nb_batches == [5, 5]  # steps of 2, 2 and 1 batches
    assert (accumulate._batches, accumulate._weight) == (0, 0)


@pytest.mark.parametrize(("n_step", "error"), [(0, ValueError), (1.5, TypeError)])
def test_n_step_must_be_a_positive_integer(n_step, error) -> None:
    with pytest.raises(error, match="`n_step` must be"):
        AccumulateScheduler(n_step=n_step)


def test_an_accumulation_without_a_step_raises() -> None:
    learn = toy_learner(n=30, bs=10)
    with pytest.raises(
        MinifastError, match=r"`n_step` is 4 but an epoch has 3 batches, so with `drop_last` .* never a"
    ):
        learn.fit(1, callbacks=AccumulateScheduler(n_step=4, drop_last=True))


# --- clipping


def norms(steps: Steps) -> list[float]:
    return [gradient.norm().item() for gradient in steps.gradients]


def test_only_gradients_above_the_norm_are_clipped() -> None:
    _, free = trained(60, 20)
    limit = sorted(norms(free))[2]
    torch.manual_seed(0)
    learn = Learner(toy_data(60, 20), simple_ann(10, 2, 8), SGD, nn.CrossEntropyLoss(), silent=True)
    assert learn.clip_grad(limit) is learn
    steps = Steps(learn)
    learn.fit(2, 0.5, callbacks=steps)
    assert norms(steps)[0] == pytest.approx(min(norms(free)[0], limit), rel=1e-4)
    assert max(norms(steps)) <= limit * (1 + 1e-5)
    assert min(norms(steps)) < 0.99 * limit


def test_under_accumulation_the_gradient_of_a_step_is_clipped() -> None:
    one, _ = trained(60, 20, GradientClipping(clip=0.05))
    several, steps = trained(60, 10, GradientClipping(clip=0.05), AccumulateScheduler(n_step=2))
    assert norms(steps) == pytest.approx([0.05] * 6, rel=1e-4)
    assert torch.allclose(weights(several), weights(one), atol=1e-6, rtol=0)


def test_a_clip_of_0_turns_clipping_off() -> None:
    alone, _ = trained(60, 20)
    none, _ = trained(60, 20, GradientClipping())
    assert torch.equal(weights(alone), weights(none))


def test_the_last_call_of_clip_grad_counts() -> None:
    learn = toy_learner().clip_grad().clip_grad(0.3)
    learn.fit(1)
    assert learn.gradient_clipping.clip == 0.3
    assert len(learn.callback_fns) == 1


def test_clip_must_be_a_number_of_at_least_0() -> None:
    with pytest.raises(ValueError, match="`clip` must be at least 0, got -1"):
        toy_learner().clip_grad(-1)
    with pytest.raises(TypeError, match="`clip` must be a number, got 'high' of type str"):
        toy_learner().clip_grad("high")


def test_accumulation_with_a_torch_loader() -> None:
    items = toy_items(50)
    torch.manual_seed(0)
    learn = Learner(DataBunch(DataLoader(items, 10), device="cpu"), simple_ann(10, 2, 8), SGD, nn.CrossEntropyLoss())
    learn.silent = True
    learn.fit(2, 0.5, callbacks=AccumulateScheduler(n_step=2))
    same, _ = trained(50, 10, AccumulateScheduler(n_step=2))
    assert torch.equal(weights(learn), weights(same))
