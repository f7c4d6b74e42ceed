"""Test-time augmentation is the mean of the predictions for corners and mirror images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minifast import (
    ClassificationInterpretation,
    DataBunch,
    DatasetType,
    Learner,
    TensorDataBunch,
    get_transforms,
    set_seed,
    simple_cnn,
)
from minifast.learner.augmented import CornerZoom, undo_activation


def learner(n: int = 10, flips: bool = True, loss_func=None, width: int = 3) -> Learner:
    set_seed(0)
    x = np.random.default_rng(0).random((n, 3, 12, 10), np.float32)
    y = np.arange(n) % 3 if loss_func is None else torch.rand(n, 2).round().numpy()
    tfms = get_transforms(do_flip=flips)
    data = TensorDataBunch.from_arrays(x, y, valid=(x, y), bs=4, seed=0, ds_tfms=tfms, device="cpu").normalize()
    return Learner(data, simple_cnn((3, 4, width)), loss_func=loss_func, silent=True)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.floats(0, 1), st.floats(1, 3))
def test_it_is_the_weighted_mean_over_the_versions(n, beta, scale):
    learn = learner(n + 3)
    plain, targets = learn.get_preds()
    each = [predictions for predictions, _ in learn.tta_only(scale=scale)]
    found, same_targets = learn.TTA(beta, scale)
    assert len(each) == 8
    assert torch.equal(targets, same_targets)
    assert torch.allclose(found, beta * plain + (1 - beta) * torch.stack(each).mean(0), atol=1e-6)


def test_without_zoom_and_mirror_nothing_changes():
    learn = learner(flips=False)
    plain, _ = learn.get_preds()
    assert len(list(learn.tta_only())) == 4
    assert torch.allclose(learn.TTA(0.0, scale=1.0)[0], plain, atol=1e-5)


def test_both_parts_without_a_weight():
    learn = learner()
    plain, mean, targets = learn.TTA(beta=None)
    assert torch.equal(plain, learn.get_preds()[0])
    assert torch.equal(mean, learn.TTA(0.0)[0])
    assert torch.equal(targets, learn.get_preds()[1])


def test_each_version_is_a_corner_of_the_image():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    for right, left_column in ((-1, 0), (1, 2)):
        for down, top in ((-1, 0), (1, 2)):
            corner = image[:, :, top : top + 2, left_column : left_column + 2]
            plain, mirrored = (CornerZoom(2, right, down, flip)((image, None))[0] for flip in (False, True))
            assert abs(plain.mean() - corner.mean()) < 0.4
            assert torch.allclose(mirrored.mean(), corner.mean(), atol=0.4)
    whole, mirror = (CornerZoom(1, 1, 1, flip)((image, None))[0] for flip in (False, True))
    assert torch.allclose(whole, image, atol=1e-5)
    assert torch.allclose(mirror, image.flip(3), atol=1e-5)


@pytest.mark.parametrize(("loss_func", "width"), [(None, 3), (nn.BCEWithLogitsLoss(), 2), (nn.MSELoss(), 2)])
def test_losses_are_those_of_the_combined_predictions(loss_func, width):
    learn = learner(loss_func=loss_func, width=width)
    predictions, targets, losses = learn.TTA(with_loss=True)
    if loss_func is None:
        expected = -predictions[torch.arange(len(targets)), targets].log()
    elif isinstance(loss_func, nn.MSELoss):
        expected = (predictions - targets).pow(2)
    else:
        expected = nn.functional.binary_cross_entropy(predictions, targets, reduction="none")
    assert torch.allclose(losses, expected.view_as(losses), atol=1e-4)
    plain = learn.get_preds(with_loss=True)[2]
    assert torch.allclose(learn.TTA(1.0, with_loss=True)[2], plain.view_as(losses), atol=1e-4)


def test_an_interpretation_of_the_combined_predictions():
    learn = learner()
    probabilities, targets, losses = learn.TTA(with_loss=True)
    interpretation = learn.interpret(tta=True)
    assert torch.equal(interpretation.preds, probabilities)
    assert torch.equal(interpretation.y_true, targets)
    assert torch.equal(interpretation.losses, losses)
    with pytest.raises(ValueError, match="cannot be combined with `activ`"):
        ClassificationInterpretation.from_learner(learn, activ=torch.softmax, tta=True)


def test_nothing_of_the_learner_changes():
    learn = learner()
    learn.fit(1)
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    state, tfms = torch.get_rng_state(), [list(dl.tfms) for dl in learn.data.dls]
    plain = learn.get_preds()[0]
    learn.TTA()
    assert torch.equal(torch.get_rng_state(), state)
    assert [dl.tfms for dl in learn.data.dls] == tfms
    assert all(torch.equal(value, before[name]) for name, value in learn.model.state_dict().items())
    assert torch.equal(learn.get_preds()[0], plain)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda learn: learn.TTA(ds_type=DatasetType.Train), ValueError, "TTA predicts the validation or the test set"),
        (lambda learn: learn.TTA(beta=2), ValueError, "`beta` must be at most 1, got 2"),
        (lambda learn: learn.TTA(scale=0.5), ValueError, r"`scale` must be at least 1, got 0\.5"),
        (lambda learn: learn.TTA(beta=None, with_loss=True), ValueError, "`with_loss=True` cannot be combined"),
    ],
)
def test_wrong_arguments(call, error, message):
    learn = learner()
    with pytest.raises(error, match=message):
        call(learn)


def test_data_without_images():
    batches = [(torch.rand(4, 5), torch.tensor([0, 1, 0, 1]))]
    data = DataBunch(batches, batches, device="cpu", classes=["a", "b"])
    with pytest.raises(ValueError, match=r"TTA needs images, floats .* got torch\.float32 \(4, 5\); use get_preds"):
        Learner(data, nn.Linear(5, 2), silent=True).TTA()
    assert data.valid_dl.tfms == []


def test_an_activation_is_undone():
    outputs = torch.randn(5, 3)
    for loss, activated in (
        (nn.CrossEntropyLoss(), outputs.softmax(1)),
        (nn.BCEWithLogitsLoss(), outputs.sigmoid()),
        (nn.MSELoss(), outputs),
    ):
        undone = undo_activation(loss, activated)
        again = undone.softmax(1) if isinstance(loss, nn.CrossEntropyLoss) else undone
        wanted = activated if isinstance(loss, nn.CrossEntropyLoss) else outputs
        assert torch.allclose(again, wanted, atol=1e-4)
