"""Mixup and label smoothing."""

from __future__ import annotations

import pytest
import torch
from conftest import toy_data, toy_items, toy_learner
from torch import nn
from torch.nn import functional

from minifast import (
    Callback,
    DataBunch,
    DataError,
    LabelSmoothingCrossEntropy,
    Learner,
    MixUpCallback,
    TensorDataBunch,
    simple_ann,
)
from minifast.losses import MixUpLoss, activation_of, sample_losses


class Batches(Callback):
    """Keeps inputs, targets, outputs and losses of the training batches as the loop has them."""

    _order = 100

    def __init__(self) -> None:
        self.seen, self.validated = [], []

    def on_batch_end(self, last_input, last_target, last_output, last_loss, train):
        values = (last_input, last_target, last_output, last_loss)
        if train:
            self.seen.append(values)
        else:
            self.validated.append(values)


def mixed(**options) -> tuple[Learner, Batches]:
    learn = toy_learner().mixup(**options)
    batches = Batches()
    learn.fit(1, 1e-2, callbacks=batches)
    return learn, batches


def test_inputs_and_targets_are_mixed_in_the_same_shares() -> None:
    _, batches = mixed()
    x, y = toy_items().tensors
    assert len(batches.seen) == 3
    for i, (inputs, (target, other, share), output, loss) in enumerate(batches.seen):
        x_batch, y_batch = x[20 * i : 20 * i + 20], y[20 * i : 20 * i + 20]
        assert torch.equal(target, y_batch)
        assert share.min() >= 0.5
        assert len(share.unique()) == 20
        # the other items are those of the batch, in another order, and their targets go with them
        others = (inputs - share[:, None] * x_batch) / (1 - share[:, None]).clamp(min=1e-3)
        distinct = share < 0.9
        nearest = torch.cdist(others, x_batch).argmin(1)
        assert distinct.any()
        assert torch.equal(other[distinct], y_batch[nearest][distinct])
        both = [functional.cross_entropy(output, one, reduction="none") for one in (target, other)]
        assert loss.item() == pytest.approx((share * both[0] + (1 - share) * both[1]).mean().item(), rel=1e-5)


def test_it_equals_a_cross_entropy_of_probabilities() -> None:
    _, batches = mixed()
    for _, (target, other, share), output, loss in batches.seen:
        hot = [functional.one_hot(one, 2).float() for one in (target, other)]
        soft = share[:, None] * hot[0] + (1 - share[:, None]) * hot[1]
        assert loss.item() == pytest.approx(functional.cross_entropy(output, soft).item(), rel=1e-5)


def test_validation_is_as_without() -> None:
    learn, batches = mixed()
    x, y = toy_items().tensors
    assert torch.equal(torch.cat([inputs for inputs, *_ in batches.validated]), x)
    assert torch.equal(torch.cat([target for _, target, *_ in batches.validated]), y)
    loss, accuracy = learn.validate()
    assert loss == pytest.approx(learn.recorder.val_losses[-1])
    assert accuracy == pytest.approx(learn.recorder.metrics[-1][0])
    assert isinstance(learn.loss_func, nn.CrossEntropyLoss)


def test_a_smaller_alpha_mixes_samples_less() -> None:
    def share(alpha):
        torch.manual_seed(0)
        return torch.cat([target[2] for _, target, *_ in mixed(alpha=alpha)[1].seen]).mean()

    assert share(0.01) > 0.97 > share(0.4) > share(10)


def test_stack_x_passes_both_inputs_to_the_model() -> None:
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(10, 2)

        def forward(self, x, other=None, share=None):
            return self.layer(x if other is None else torch.lerp(other, x, share[:, None]))

    learn = Learner(toy_data(), Mixes(), silent=True).mixup(stack_x=True)
    batches = Batches()
    learn.fit(1, callbacks=batches)
    assert [len(inputs) for inputs, *_ in batches.seen] == [3, 3, 3]
    assert [tuple(inputs.shape) for inputs, *_ in batches.validated] == [(20, 10)] * 3


def test_float_targets_can_be_mixed() -> None:
    x, y = toy_items().tensors
    data = DataBunch([(x, y.float()[:, None])], [(x, y.float()[:, None])], device="cpu")

    def fitted(stack_y):
        torch.manual_seed(0)
        learn = Learner(data, nn.Linear(10, 1), loss_func=nn.L1Loss(), silent=True)
        torch.manual_seed(1)
        batches = Batches()
        learn.mixup(stack_y=stack_y).fit(1, callbacks=batches)
        return batches.seen[0]

    (inputs, targets, *_), (again, parts, *_) = fitted(False), fitted(True)
    assert torch.equal(inputs, again)
    target, other, share = parts
    assert torch.allclose(targets, share[:, None] * target + (1 - share[:, None]) * other)


@pytest.mark.parametrize(
    ("loss_func", "dtype"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), torch.long),
        (functional.cross_entropy, torch.long),
        (lambda output, target: functional.cross_entropy(output, target), torch.long),
        (LabelSmoothingCrossEntropy(), torch.long),
        (nn.MSELoss(), torch.float),
    ],
)
def test_any_loss_is_mixed(loss_func, dtype) -> None:
    torch.manual_seed(0)
    output = torch.randn(6, 2)
    target, other = ((torch.arange(6) + i) % 2 for i in range(2))
    if dtype is torch.float:
        target, other = (one.float()[:, None].expand(6, 2).contiguous() for one in (target, other))
    share = torch.full((6,), 0.75)
    loss = MixUpLoss(loss_func)(output, target, other, share)
    wanted = 0.75 * loss_func(output, target) + 0.25 * loss_func(output, other)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert MixUpLoss(loss_func)(output, target).item() == loss_func(output, target).item()


def test_segmentation_targets_are_mixed() -> None:
    output, target = torch.randn(4, 3, 5, 5), torch.randint(3, (4, 5, 5))
    share = torch.tensor([1.0, 1.0, 0.5, 0.5])
    loss = MixUpLoss(nn.CrossEntropyLoss())(output, target, target.flip(0), share)
    each = [sample_losses(nn.CrossEntropyLoss(), output, one).mean((1, 2)) for one in (target, target.flip(0))]
    assert loss.item() == pytest.approx((share * each[0] + (1 - share) * each[1]).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "options", "words"),
    [
        (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), {"stack_y": False}, "targets are torch.int64.*stack_y=T"),
        (torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, 2), {}, "inputs are torch.int64, which .* stack_x=True"),
        ([torch.zeros(4, 2)] * 2, torch.zeros(4, 2), {}, "inputs of a batch are a list; MixUpCallback needs one"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_mixed_raises_and_restores_the_loss(x, y, options, words) -> None:
    learn = Learner(DataBunch([(x, y)], device="cpu"), nn.Linear(2, 2), loss_func=nn.MSELoss(), silent=True)
    loss_func = learn.loss_func
    with pytest.raises(DataError, match=words):
        learn.mixup(**options).fit(1)
    assert learn.loss_func is loss_func


def test_outputs_of_another_width_are_still_noticed() -> None:
    data = toy_data()
    data.classes = ["a", "b"]
    with pytest.raises(DataError, match="gives 3 outputs, but the data have 2 classes"):
        Learner(data, simple_ann(10, 3), silent=True).mixup().fit(1)


def test_alpha_is_checked_when_it_is_given() -> None:
    with pytest.raises(ValueError, match="`alpha` must be positive, got 0"):
        toy_learner().mixup(0)


def test_a_callback_of_the_learner_does_not_touch_what_is_no_training() -> None:
    learn = toy_learner()
    learn.callbacks.append(MixUpCallback(learn))
    loss_func = learn.loss_func
    learn.validate()
    assert learn.loss_func is loss_func


def test_samples_are_mixed_once_and_the_loss_is_restored() -> None:
    learn = toy_learner().mixup()
    loss_func = learn.loss_func
    with pytest.raises(DataError, match="targets of a batch are a tuple"):
        learn.fit(1, callbacks=MixUpCallback())
    assert learn.loss_func is loss_func
    learn.mixup(0.2).fit(1)
    assert (learn.mix_up_callback.alpha, len(learn.callback_fns)) == (0.2, 1)


def test_several_targets_per_sample_are_mixed() -> None:
    x = torch.randn(64, 4)
    data = TensorDataBunch.from_arrays(x, x[:, :3].clone(), device="cpu", bs=16)
    learn = Learner(data, simple_ann(4, 3), silent=True).mixup()
    learn.fit(1)
    assert learn.get_preds(with_loss=True)[2].shape == (12, 3)


# --- label smoothing


def by_hand(output: torch.Tensor, target: torch.Tensor, eps: float) -> torch.Tensor:
    """fastai v1's formula: eps of the mean over the classes, the rest of the class's own."""
    logs = output.log_softmax(-1)
    return -(eps * logs.mean(-1) + (1 - eps) * logs.gather(-1, target[:, None])[:, 0])


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5, 1.0])
def test_it_is_the_formula_of_fastai_v1(eps) -> None:
    torch.manual_seed(0)
    output, target = torch.randn(7, 5), torch.randint(5, (7,))
    losses = by_hand(output, target, eps)
    assert torch.allclose(LabelSmoothingCrossEntropy(eps, "none")(output, target), losses, atol=1e-6)
    assert torch.allclose(LabelSmoothingCrossEntropy(eps)(output, target), losses.mean(), atol=1e-6)
    assert torch.allclose(LabelSmoothingCrossEntropy(eps, "sum")(output, target), losses.sum(), atol=1e-5)


def test_predictions_and_sample_losses_use_the_wrapped_loss() -> None:
    learn = toy_learner(loss_func=LabelSmoothingCrossEntropy())
    learn.fit(1, 1e-2)
    predictions, _, losses = learn.get_preds(with_loss=True)
    assert torch.allclose(predictions.sum(1), torch.ones(60))
    assert losses.mean().item() == pytest.approx(learn.recorder.val_losses[-1], rel=1e-5)
    assert torch.equal(activation_of(MixUpLoss(learn.loss_func))(torch.zeros(1, 2)), torch.tensor([[0.5, 0.5]]))


def test_eps_must_be_in_0_to_1() -> None:
    with pytest.raises(ValueError, match=r"`eps` must be at most 1, got 1\.5"):
        LabelSmoothingCrossEntropy(1.5)
