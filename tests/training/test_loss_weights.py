"""The validation loss is the loss of all samples at once, whatever the batch size and whatever the loss counts."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from minifast import (
    DataBunch,
    DataError,
    LabelSmoothingCrossEntropy,
    Learner,
    NonFiniteLossError,
    Precision,
    accuracy,
    top_k_accuracy,
)
from minifast.losses import MixUpLoss, MSELossFlat, batch_size_effect, loss_weight
from minifast.training.averages import WeightedMean
from minifast.training.non_finite import diagnose

CLASSES = 3
WEIGHT = torch.tensor([0.1, 1.0, 10.0])


class Squeezed(nn.CrossEntropyLoss):
    """A loss derived from cross entropy that reshapes its targets."""

    def forward(self, input, target):
        return super().forward(input, target.view(-1))


def several(output, first, second):
    return functional.mse_loss(output[:, 0], first) + functional.l1_loss(output[:, 1], second)


def of_dict(output, target):
    return (output[:, 0] - target["a"]).square().mean() + (output[:, 1] - target["b"]["c"]).abs().mean()


def without_target(output, target):
    assert target is None
    return output.square().mean()


# Each: the loss, and the kind of its targets.
LOSSES = {
    "cross entropy": (nn.CrossEntropyLoss(), "class"),
    "another ignored class": (nn.CrossEntropyLoss(ignore_index=1), "whole class"),
    "class weights": (nn.CrossEntropyLoss(WEIGHT), "class"),
    "a weight of 0": (nn.CrossEntropyLoss(torch.tensor([0.0, 1.0, 2.0])), "class"),
    "smoothed weights": (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2), "class"),
    "smoothed": (LabelSmoothingCrossEntropy(0.2), "class"),
    "summed": (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), "class"),
    "summed smoothed": (LabelSmoothingCrossEntropy(0.2, reduction="sum"), "class"),
    "derived": (Squeezed(WEIGHT), "class"),
    "a function": (functional.cross_entropy, "class"),
    "bound arguments": (partial(functional.cross_entropy, weight=WEIGHT, ignore_index=2), "whole class"),
    "a bound sum": (partial(functional.cross_entropy, reduction="sum"), "class"),
    "nll": (nn.NLLLoss(WEIGHT), "class"),
    "nll function": (partial(functional.nll_loss, ignore_index=0), "whole class"),
    "in a MixUpLoss": (MixUpLoss(nn.CrossEntropyLoss(WEIGHT)), "class"),
    "maps": (nn.CrossEntropyLoss(WEIGHT), "map"),
    "maps without weights": (nn.CrossEntropyLoss(), "map"),
    "probabilities": (nn.CrossEntropyLoss(WEIGHT), "probability"),
    "mse": (nn.MSELoss(), "float"),
    "mse sum": (nn.MSELoss(reduction="sum"), "float"),
    "l1 function": (functional.l1_loss, "float"),
    "huber": (partial(functional.huber_loss, delta=0.5), "float"),
    "flat": (MSELossFlat(), "float"),
    "bce": (nn.BCEWithLogitsLoss(weight=torch.tensor([1.0, 2.0, 3.0]), pos_weight=WEIGHT), "binary"),
    "kl of a batch": (nn.KLDivLoss(reduction="batchmean"), "probability"),
    "kl": (nn.KLDivLoss(), "probability"),
    "margin": (nn.MultiMarginLoss(), "whole class"),
    "several targets": (several, "tuple"),
    "dict targets": (of_dict, "dict"),
    "no targets": (without_target, "none"),
    "own mean": (lambda output, target: (output - target).square().mean(), "float"),
}


def targets_of(kind: str, n: int, generator: torch.Generator):
    draw = partial(torch.randn, generator=generator)
    if kind in ("class", "map", "whole class"):
        shape = (n, 2) if kind == "map" else (n,)
        target = torch.randint(CLASSES, shape, generator=generator)
        ignored = torch.rand(shape, generator=generator) < (0 if kind == "whole class" else 0.4)
        return target.masked_fill(ignored, -100)
    if kind == "probability":
        return draw(n, CLASSES).softmax(1)
    if kind == "binary":
        return (draw(n, CLASSES) > 0).float()
    if kind == "float":
        return draw(n, CLASSES)
    if kind == "tuple":
        return draw(n), draw(n)
    return {"a": draw(n), "b": {"c": draw(n)}} if kind == "dict" else None


def rows_of(values, rows):
    if isinstance(values, torch.Tensor):
        return values[rows]
    if isinstance(values, dict):
        return {name: rows_of(value, rows) for name, value in values.items()}
    return None if values is None else tuple(rows_of(value, rows) for value in values)


def batches_of(x, y, sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [(x[b - n : b], rows_of(y, slice(b - n, b))) for b, n in zip(ends, sizes, strict=True)]


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, CLASSES * 2), nn.Unflatten(1, (CLASSES, 2))) if kind == "map" else nn.Linear(4, 3)


def learner_of(batches, valid, loss, kind, **kwargs) -> Learner:
    data = DataBunch(batches, valid, device="cpu", classes=None, loss_func=loss)
    return Learner(data, model_of(kind), torch.optim.SGD, wd=0, silent=True, **kwargs)


sizes = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=12)
@given(sizes=sizes, seed=st.integers(0, 1000))
def test_the_validation_loss_is_that_of_all_samples(name, sizes, seed) -> None:
    loss, kind = LOSSES[name]
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(sum(sizes), 4, generator=generator), targets_of(kind, sum(sizes), generator)
    learn = learner_of([(x, y)], batches_of(x, y, sizes), loss, kind)
    with torch.no_grad():
        expected = float(loss(learn.model(x), *(y if isinstance(y, tuple) else (y,))))
    value = learn.validate(metrics=[])[0]
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)


def test_elements_count_where_batches_have_other_shapes() -> None:
    x = [torch.randn(3, 4, 4), torch.randn(2, 9, 4)]  # sequences padded to the longest of their batch
    y = [torch.randn(3, 4, 3), torch.randn(2, 9, 3)]
    learn = learner_of([(x[0], y[0])], list(zip(x, y, strict=True)), nn.MSELoss(), "float")
    with torch.no_grad():
        errors = torch.cat([(learn.model(a) - b).square().flatten() for a, b in zip(x, y, strict=True)])
    assert learn.validate(metrics=[])[0] == pytest.approx(float(errors.mean()), rel=1e-5)


def test_batches_that_count_nothing_add_nothing() -> None:
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    ignored = torch.full((4,), -100)
    learn = learner_of([(x, y)], [(x[:4], ignored), (x[4:], y[4:])], nn.CrossEntropyLoss(), "class")
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(learn.model(x[4:]), y[4:]))
    assert learn.validate(metrics=[])[0] == pytest.approx(expected)
    nothing = learner_of([(x, y)], [(x[:4], ignored)], nn.CrossEntropyLoss(), "class")
    assert math.isnan(nothing.validate(metrics=[])[0])  # as torch says of all samples
    empty = learner_of([(x, y)], [(x[:0], y[:0]), (x[4:], y[4:])], nn.CrossEntropyLoss(), "class")
    with pytest.warns(UserWarning, match="A validation batch has no samples, and is skipped"):
        assert empty.validate(metrics=[])[0] == pytest.approx(expected)


def test_a_loss_that_is_nan_is_not_hidden() -> None:
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    learn = learner_of([(x, y)], [(x[:4] * math.nan, y[:4]), (x[4:], y[4:])], nn.CrossEntropyLoss(), "class")
    assert math.isnan(learn.validate(metrics=[])[0])


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 4)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_weights_that_stay_on_a_device_give_the_same_mean(pairs) -> None:
    assume(sum(weight for _, weight in pairs))
    plain, on_device = WeightedMean(), WeightedMean()
    for value, weight in pairs:
        value = value if weight else math.nan
        plain.add(torch.tensor(value), weight)
        on_device.add(torch.tensor(value), torch.tensor(weight))
    assert on_device.read() == pytest.approx(plain.read())
    assert on_device.read_sum() == pytest.approx(plain.read_sum())


def test_the_weight_of_mixed_samples_is_their_number() -> None:
    loss, targets = MixUpLoss(nn.CrossEntropyLoss(WEIGHT)), torch.arange(5) % 3
    mixed = (targets, targets.flip(0), torch.rand(5))
    assert loss_weight(loss, mixed) == 5
    assert loss_weight(loss, targets) == pytest.approx(float(WEIGHT[targets].sum()))


# --- losses that depend on the batch size


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("name", LOSSES)
def test_known_losses_do_not_depend_on_the_batch_size(name) -> None:
    loss, kind = LOSSES[name]
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(12, 4, generator=generator), targets_of(kind, 12, generator)
    assert batch_size_effect(loss, model_of(kind)(x), y, x) is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda output, target: functional.cross_entropy(output, target, ignore_index=0),  # which nobody can see
        lambda output, target: functional.cross_entropy(output, target, WEIGHT),
        lambda output, target: functional.cross_entropy(output, target, reduction="sum"),
        lambda output, target: (output @ output.T).square().mean(),  # compares the samples of a batch
    ],
)
def test_an_own_loss_of_another_weight_is_seen(loss) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(12, 4, generator=generator), torch.arange(12) % 3
    whole, combined = batch_size_effect(loss, model_of("class")(x), y, x)
    assert whole != pytest.approx(combined, rel=1e-3)


def test_one_sample_says_nothing() -> None:
    assert batch_size_effect(nn.MSELoss(), torch.zeros(1, 3), torch.ones(1, 3)) is None


# --- training


def test_a_training_batch_that_counts_nothing_is_named() -> None:
    x = torch.randn(4, 4)
    learn = learner_of([(x, torch.full((4,), -100))], None, nn.CrossEntropyLoss(), "class")
    with pytest.raises(NonFiniteLossError, match="The batch's targets do not count in the loss, which is 0 divided"):
        learn.fit(1)


def test_a_batch_without_samples_is_named() -> None:
    x, y = torch.randn(0, 4), torch.zeros(0, dtype=torch.int64)
    sentences = [*diagnose(model_of("class"), nn.CrossEntropyLoss(), x, y)]
    assert sentences[0] == "The batch's inputs and targets have no samples."


class Once:
    """A loader that can be iterated once."""

    def __init__(self, batches) -> None:
        self.iterator = iter(batches)

    def __len__(self) -> int:
        return 2

    def __iter__(self):
        return self.iterator


@pytest.mark.parametrize("part", ["training", "validation"])
def test_an_epoch_without_a_batch_is_an_error(part) -> None:
    batches = [(torch.randn(4, 4), torch.arange(4) % 3)] * 2
    loaders = [Once(batches), batches] if part == "training" else [batches, Once(batches)]
    learn = learner_of(*loaders, nn.CrossEntropyLoss(), "class")
    with pytest.raises(DataError, match=f"The {part} data gave no batch in epoch 1, though the length of the loader"):
        learn.fit(3)
    assert len(learn.recorder.val_losses) == 1


def test_one_epoch_of_a_loader_that_can_be_iterated_once() -> None:
    learn = learner_of(Once([(torch.randn(4, 4), torch.arange(4) % 3)] * 2), None, nn.CrossEntropyLoss(), "class")
    learn.fit(1)
    assert learn.recorder.nb_batches == [2]


@pytest.mark.parametrize("batch", [{"x": 1, "y": 2}, (1,), torch.zeros(2, 4), [torch.zeros(2, 4)]])
def test_batches_that_are_no_pair_raise_before_the_first_step(batch) -> None:
    learn = learner_of([batch], None, lambda output, target: output.mean(), "float")
    before = learn.model.weight.clone()
    with pytest.raises(DataError, match=r"A training batch is .*; it must have inputs and targets"):
        learn.fit(1)
    assert torch.equal(before, learn.model.weight)
    pair = (torch.zeros(2, 4), torch.zeros(2, 3))
    learn = learner_of([pair], [batch], nn.MSELoss(), "float")
    with pytest.raises(DataError, match=r"A validation batch is .*; it must have inputs and targets"):
        learn.validate()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.sampled_from([None, "weights"]), st.sampled_from([-100, 0, 156, 255]), st.integers(0, 99))
def test_class_numbers_in_a_byte_are_those_in_an_integer(bs, weights, ignore_index, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(9, 256, generator=generator)
    targets = torch.tensor([0, 156, 255])[torch.randint(3, (9,), generator=generator)]
    weight = None if weights is None else torch.rand(256, generator=generator) + 0.1
    loss = nn.CrossEntropyLoss(weight, ignore_index=ignore_index)
    assume(bool((targets != ignore_index).any()))
    results = []
    for numbers in (targets, targets.to(torch.uint8)):
        batches = list(zip(outputs.split(bs), numbers.split(bs), strict=True))
        learn = Learner(DataBunch(batches, batches, device="cpu"), nn.Linear(1, 1), loss_func=loss, silent=True)
        learn.model = nn.Identity()
        results.append(learn.validate(metrics=[accuracy, top_k_accuracy, Precision("macro")]))
    assert results[1] == results[0]
    assert results[0][0] == pytest.approx(float(loss(outputs, targets)), rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 40), st.integers(0, 99))
@example(18, 18)  # thirds of the batch have the same classes, and the single samples happen to agree
def test_a_hidden_weight_of_the_classes_is_found(n, seed) -> None:
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.CrossEntropyLoss(WEIGHT)

        def forward(self, output, target):
            return self.inner(output, target)

    generator = torch.Generator().manual_seed(seed)
    outputs, targets = torch.randn(n, CLASSES, generator=generator), torch.arange(n) % CLASSES
    assert batch_size_effect(Hidden(), outputs, targets) is not None
    assert batch_size_effect(nn.CrossEntropyLoss(WEIGHT), outputs, targets) is None


def test_a_loss_that_is_no_number_raises_where_it_is_computed() -> None:
    batches = [(torch.randn(4, 2), torch.arange(4) % 2)]
    loss = nn.CrossEntropyLoss(reduction="none")
    learn = Learner(DataBunch(batches, batches, device="cpu"), nn.Linear(2, 2), loss_func=loss, silent=True)
    for call in (learn.validate, lambda: learn.fit(1)):
        with pytest.raises(ValueError, match=r"must return one number per batch, got a tensor of shape \(4,\)"):
            call()


def test_a_loss_that_fails_on_a_single_sample_says_so() -> None:
    batches = [(torch.randn(4, 2), torch.arange(4) % 2)]

    def squeezing(output, target):
        return functional.binary_cross_entropy_with_logits(output.squeeze(), target.float())

    learn = Learner(DataBunch(batches, batches, device="cpu"), nn.Linear(2, 1), loss_func=squeezing, silent=True)
    learn.validate()
    with pytest.raises(DataError, match=r"fails on a single sample, .* squeeze\(1\)"):
        learn.get_preds(with_loss=True)
