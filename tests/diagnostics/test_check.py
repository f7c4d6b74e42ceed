"""learn.check() reports each problem, reports none for a healthy learner, and restores all state."""

from __future__ import annotations

import copy
import math
import re
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import toy_data, toy_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    Callback,
    DataBunch,
    DataError,
    DatasetType,
    ImageDataBunch,
    Learner,
    TabularDataBunch,
    TensorDataBunch,
    TensorLoader,
    accuracy,
    set_seed,
    simple_ann,
    simple_cnn,
    tabular_learner,
)
from minifast.data import synthetic
from minifast.diagnostics import CheckResult, Finding
from minifast.tabular.model import TabularModel


def learner(model=None, x=None, y=None, **options) -> Learner:
    """Return a learner with 12 batches, without problems but for the arguments."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 2 if y is None else y
    x = torch.randn(120, 10, generator=generator) + (torch.arange(120) % 2)[:, None] if x is None else x
    torch.manual_seed(0)
    options = {"loss_func": nn.CrossEntropyLoss(), "silent": True} | options
    data = DataBunch(DataLoader(TensorDataset(x, y), 10), device="cpu", classes=options.pop("classes", None))
    return Learner(data, simple_ann(10, 2) if model is None else model, **options)


def only_finding(learn: Learner) -> Finding:
    """Return the only finding."""
    (finding,) = learn.check().findings
    assert finding.why
    assert finding.remedy
    return finding


@pytest.mark.parametrize("classes", [None, ["a", "b"]])
@pytest.mark.parametrize("only", [0, 1])
def test_targets_of_a_single_class_are_reported(only, classes):
    name = classes[only] if classes else only
    y = torch.full((120,), only)
    x = torch.randn(120, 10, generator=torch.Generator().manual_seed(0))
    in_memory = TensorDataBunch.from_arrays(x, y, classes=classes or ["x", "y"], seed=0, device="cpu")
    in_memory.classes = classes
    (finding,) = single_class(Learner(in_memory, simple_ann(10, 2), loss_func=nn.CrossEntropyLoss(), silent=True))
    assert finding.what == f"All training targets are one class, {name}."
    sorted_y = torch.cat([y[:60], 1 - y[:60]])
    batches = DataBunch(DataLoader(TensorDataset(x, sorted_y), 20), device="cpu", classes=classes)
    (finding,) = single_class(Learner(batches, simple_ann(10, 2), loss_func=nn.CrossEntropyLoss(), silent=True))
    assert finding.what == f"All 20 targets of the first batch are one class, {name}."
    assert finding.mild
    assert not single_class(learner())


def single_class(learn: Learner) -> list[Finding]:
    """Return the findings about targets of a single class."""
    return [finding for finding in learn.check().findings if "one class," in finding.what]


def test_a_missing_validation_set_is_named():
    words = "There are no validation data, so the table has no validation loss and no metrics."
    assert words in str(learner().check())
    assert words not in str(toy_learner().check())


# --- a loss that broadcasts


class Squared(nn.Module):
    def forward(self, output, target):
        return (output - target).square().mean()


BROADCAST = {
    "a function": lambda output, target: (output - target).abs().mean(),
    "a module": Squared(),
    "a root": lambda output, target: (output - target).square().mean().sqrt(),
    "a sum": lambda output, target: (output - target).square().sum(),
}
PAIRED = {
    "a column": lambda output, target: (output[:, 0] - target).square().mean(),
    "a view": lambda output, target: (output - target.view_as(output)).abs().mean(),
    "a row": lambda output, target: (output - target[:, None]).square().mean(),
    "squeezed": lambda output, target: (output.squeeze() - target).square().mean(),
    "of means": lambda output, target: (output.mean() - target.mean()).square(),
    "of all pairs": lambda output, target: torch.cdist(output, target.view(-1, 1)).mean(),
}


def of_numbers(loss_func, zeros: bool) -> Learner:
    model = nn.Linear(10, 1)
    if zeros:
        nn.init.zeros_(model.weight)
    return learner(model, y=torch.randn(120, generator=torch.Generator().manual_seed(1)), loss_func=loss_func)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("name", BROADCAST)
def test_a_loss_that_pairs_each_output_with_all_targets_is_reported(name, zeros) -> None:
    finding = next(f for f in of_numbers(BROADCAST[name], zeros).check().findings if "exchanged" in f.what)
    assert "outputs (10, 1) and targets (10,) broadcast to 100 pairs" in finding.what
    assert not finding.mild


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("name", PAIRED)
def test_a_loss_that_matches_the_shapes_itself_is_not_reported(name, zeros) -> None:
    assert not any("exchanged" in finding.what for finding in of_numbers(PAIRED[name], zeros).check().findings)


# --- the loss and the size of a batch


def test_a_loss_that_depends_on_the_batch_size_is_reported() -> None:
    def padded(output, target):
        return nn.functional.cross_entropy(output, target, weight=torch.tensor([1.0, 9.0]))

    found = only_finding(learner(loss_func=padded))
    assert found.what.startswith("The loss of the batch is")
    assert "depend on batch size" in found.why
    assert found.mild
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0]))
    assert not [finding for finding in learner(loss_func=weighted).check().findings if "parts" in finding.what]


# --- no problem


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.lstm(self.embedding(x))[0][:, -1])


def regression(**options) -> Learner:
    x = torch.randn(120, 10, generator=torch.Generator().manual_seed(1))
    return learner(nn.Linear(10, 1), x, x.sum(1, keepdim=True) + 1, loss_func=nn.MSELoss(), **options)


HEALTHY = {
    "ann": learner,
    "momentum": lambda: learner(opt_func=partial(torch.optim.SGD, momentum=0.9)),
    "dropout and normalisation": lambda: learner(
        nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 2))
    ),
    "regression": regression,
    "two labels": lambda: learner(
        simple_ann(10, 3), y=(torch.arange(360).view(120, 3) % 2).float(), loss_func=nn.BCEWithLogitsLoss()
    ),
    "nll": lambda: learner(nn.Sequential(simple_ann(10, 2), nn.LogSoftmax(1)), loss_func=nn.NLLLoss()),
    "logarithms": lambda: learner(nn.Sequential(simple_ann(10, 2), nn.LogSoftmax(1))),
    "words": lambda: learner(Recurrent(), torch.arange(120)[:, None] % 7 + torch.arange(5)),
    "label smoothing": lambda: learner(loss_func=nn.CrossEntropyLoss(label_smoothing=0.1)),
    "a class of its own": lambda: learner(y=torch.zeros(120, dtype=torch.int64)),
    "a function": lambda: learner(loss_func=nn.functional.cross_entropy),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_learner_has_no_finding(name):
    result = HEALTHY[name]().check()
    assert result.findings == [], str(result)
    assert str(result).startswith("No problem found. The initial loss is ")


def test_a_learner_on_images_has_no_finding(tmp_path):
    folder = synthetic.generate_sample(tmp_path / "sample", n_train=320, n_valid=20)
    data = ImageDataBunch.from_folder(folder, bs=32, device="cpu", seed=1)
    for seed in range(3):
        torch.manual_seed(seed)
        result = Learner(data, simple_cnn((3, 16, 16, 2)), metrics=[accuracy]).check()
        assert result.findings == [], str(result)


def test_a_trained_learner_has_no_finding():
    learn = learner()
    learn.fit_one_cycle(3, 1e-2)
    assert learn.check().findings == []


# --- problems


def test_softmax_before_cross_entropy():
    finding = only_finding(learner(nn.Sequential(simple_ann(10, 2), nn.Softmax(1))))
    assert finding.what == "The outputs sum to 1: the model ends in a softmax, but cross entropy applies one itself."
    assert "Remove the softmax" in finding.remedy


def test_sigmoid_before_its_own_loss():
    model = nn.Sequential(simple_ann(10, 3), nn.Sigmoid())
    y = (torch.arange(360).view(120, 3) % 2).float()
    assert (
        "the model seems to end in a sigmoid or a ReLU"
        in only_finding(learner(model, y=y, loss_func=nn.BCEWithLogitsLoss())).what
    )


def test_nll_loss_without_log_probabilities():
    findings = learner(loss_func=nn.NLLLoss()).check().findings
    assert "not log-probabilities" in findings[0].what


def test_an_initial_loss_far_above_uniform_guessing():
    model = simple_ann(10, 2)
    nn.init.normal_(model[3].weight, std=20)
    finding = only_finding(learner(model))
    assert "far above the 0.693 of uniform guessing among 2 classes" in finding.what


def test_class_numbers_beyond_the_outputs():
    finding = only_finding(learner(y=torch.arange(120) % 3))
    assert finding.what == "The targets go from 0 to 2, but the model gives 2 outputs."
    assert finding.remedy == "Targets are class numbers from 0 to 1."


def test_a_number_of_outputs_other_than_the_number_of_classes():
    finding = only_finding(learner(simple_ann(10, 5), classes=["a", "b"]))
    assert finding.what == "The model gives 5 outputs, but the data have 2 classes (a, b)."
    assert finding.remedy == "Give the last layer 2 outputs."


CLASSES, PAIRS = torch.arange(120) % 2, torch.arange(240).view(120, 2) % 2


@pytest.mark.parametrize(
    ("y", "loss", "what"),
    [
        (CLASSES.float(), nn.CrossEntropyLoss(), "The targets are float32, but cross entropy needs class numbers"),
        (CLASSES.int(), nn.CrossEntropyLoss(), "The targets are int32, but cross entropy needs int64."),
        (PAIRS, nn.BCEWithLogitsLoss(), "are int64, but BCEWithLogitsLoss needs floats"),
        (PAIRS, nn.MSELoss(), "are int64, but MSELoss needs floats"),
        (CLASSES.float(), nn.MSELoss(), "outputs have the shape (10, 2) and the targets (10,), which MSELoss"),
        (
            CLASSES[:, None],
            nn.CrossEntropyLoss(),
            "targets have the shape (10, 1), but CrossEntropyLoss needs (10,)",
        ),
    ],
)
def test_targets_of_the_wrong_kind(y, loss, what):
    assert what in only_finding(learner(y=y, loss_func=loss)).what


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("labels", [[0] * 40, ["a"] * 40, [True] * 40, "without names"])
def test_one_class_is_an_error_in_a_check_and_before_the_first_step(labels, n_outputs):
    x = torch.randn(40, 10)
    if labels == "without names":
        if n_outputs > 1:  # a data set without names may lack a class by chance
            return
        data = DataBunch(DataLoader(TensorDataset(x, torch.zeros(40).long()), 10), device="cpu")
    else:
        data = TensorDataBunch.from_arrays(x, labels, bs=8, seed=0, device="cpu")
    learn = Learner(data, simple_ann(10, n_outputs), silent=True)
    before = [p.clone() for p in learn.model.parameters()]
    assert re.search("one class .*0 for every input", learn.check(10).findings[0].what)
    assert len(learn.check(10).findings) == 1
    for start in (partial(learn.fit, 1), partial(learn.fit_one_cycle, 1), learn.lr_find):
        with pytest.raises(DataError, match=r"one class .*0 for every input"):
            start()
    assert all(map(torch.equal, before, learn.model.parameters()))


INPUTS = torch.randn(120, 10)
IMAGES = torch.randn(120, 3, 8, 8)
WORDS = torch.arange(240).remainder(9).reshape(120, 2)


@pytest.mark.parametrize(
    ("layers", "x", "words"),
    [
        ([nn.Linear(9, 2)], INPUTS, "Layer 0.0, Linear(in_features=9, .* got .* (10, 10); it needs (..., 9)"),
        (
            [nn.Conv2d(1, 2, 3)],
            IMAGES,
            "Layer 0.0, Conv2d(1, 2, .* (10, 3, 8, 8); it needs (n, 1, height, width)",
        ),
        ([nn.BatchNorm1d(7)], INPUTS, "Layer 0.0, BatchNorm1d(7, .* got .* (10, 10); it needs (n, 7)"),
        ([nn.BatchNorm2d(3)], INPUTS, "Layer 0.0, BatchNorm2d(3, .* got .* (10, 10); it needs (n, 3, height, width)"),
        (
            [nn.Embedding(5, 2)],
            WORDS,
            "Layer 0.0, Embedding(5, 2), .* numbers from 0 to 4, it got numbers from 0 to",
        ),
        ([nn.Identity(), nn.Tanh(), nn.Linear(3, 2)], INPUTS, "Layer 0.2, Linear(in_features=3, .* needs (..., 3)"),
    ],
)
def test_the_layer_that_fails_is_named_with_what_it_got_and_needs(layers, x, words):
    pattern = ".*".join(map(re.escape, words.split(" .* ")))
    learn = learner(nn.Sequential(nn.Sequential(*layers)), x)
    assert re.search(pattern, only_finding(learn).what)
    sample = partial(learn.predict, x[4])
    methods = [partial(learn.fit, 1), partial(learn.validate, learn.data.train_dl), learn.summary, sample]
    looks = (learn.pred_batch, learn.get_preds, learn.show_results, learn.interpret)
    methods += [partial(look, ds_type=DatasetType.Train) for look in looks]
    for method in methods:
        with pytest.raises((RuntimeError, ValueError, IndexError), match=r"\S") as caught:
            method()
        shapes = pattern.replace(re.escape("(10, "), re.escape("(1, ")) if method is sample else pattern
        if sys.version_info >= (3, 11):
            assert any(re.search(shapes, note) for note in caught.value.__notes__), method


@pytest.mark.parametrize(
    ("change", "channels", "cure"),
    [
        (lambda x: x[:, 0], 1, "add the channel with x[:, None]"),
        (lambda x: x.permute(0, 2, 3, 1), 3, "move the channels with x.permute(0, 3, 1, 2)"),
        (lambda x: x[:, :1], 3, "give gray images 3 channels with x.repeat(1, 3, 1, 1)"),
        (lambda x: (x[:, :1] * 255).byte(), 1, "uint8 get 3 equal channels: give them as floats, x / 255"),
        (lambda x: (x[:, 0] * 255).byte(), 1, "images are (n, channels, height, width): give x[:, None]"),
        (lambda x: (x.permute(0, 2, 3, 1) * 255).byte(), 3, "give x.permute(0, 3, 1, 2)"),
        (lambda x: x[:, 0, 0], 1, ""),
        (lambda x: x, 1, ""),
    ],
)
def test_images_of_another_shape_are_answered_with_how_to_change_it(change, channels, cure):
    x = change(IMAGES.sigmoid())
    data = TensorDataBunch.from_arrays(x, torch.arange(120) % 2, seed=0, bs=10, device="cpu")
    learn = Learner(data, simple_cnn((channels, 4, 2)), silent=True)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        learn.fit(1)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert cure in said
    if cure:
        fixed = eval(re.search(r"x( / 255|\.\w+\(.*\)|\[.*\])$", cure)[0], {"x": x})  # what it says is enough
        again = TensorDataBunch.from_arrays(fixed, torch.arange(120) % 2, seed=0, bs=10, device="cpu")
        Learner(again, simple_cnn((channels if again.train_ds[0][0].shape[0] != 3 else 3, 4, 2)), silent=True).fit(1)


def test_a_model_that_fails_on_the_batch():
    finding = only_finding(learner(nn.Linear(7, 2)))
    assert finding.what.startswith("The model fails on a batch of shape (10, 10) float32: ")


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "one number per batch, got shape (10,)."),
        (lambda output, target: 3.0, "one number per batch, got 3.0."),
        (lambda output, target: output.detach().mean(), "The backward pass fails: element 0 of tensors does not"),
        (lambda output, target: output.mean() / 0, "All outputs are finite, so the loss function produces"),
    ],
)
def test_losses_that_do_not_train(loss, what):
    assert what in only_finding(learner(loss_func=loss)).what


GOOD = torch.randn(120, 10, generator=torch.Generator().manual_seed(0)) + (torch.arange(120) % 2)[:, None]
CLASSES = torch.arange(120) % 2
IMAGES = torch.randn(120, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + CLASSES.view(120, 1, 1, 1)
POOLED = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
NUMBERS = GOOD.sum(1, keepdim=True) / 10


def validated(x, y, train_x=GOOD, train_y=CLASSES, layers=None, loss=None, in_memory=False) -> list[Finding]:
    """Return the findings of a learner with these validation data."""
    torch.manual_seed(0)
    loaders = [
        TensorLoader(a, b, 10, device="cpu") if in_memory else DataLoader(TensorDataset(a, b), 10)
        for a, b in ((train_x, train_y), (x, y))
    ]
    model = simple_ann(10, 2) if layers is None else nn.Sequential(*layers)
    learn = Learner(DataBunch(*loaders, device="cpu"), model, loss_func=loss or nn.CrossEntropyLoss(), silent=True)
    return learn.check().findings


def changed(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x[3, 0] = value
    return x


REGRESSION = {"train_y": NUMBERS, "layers": (nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1)), "loss": nn.MSELoss()}
TIMES = GOOD[:, :, None] + torch.arange(4) / 4
STEPS = CLASSES[:, None].repeat(1, 4)
SEQUENCES = {"train_x": TIMES, "train_y": STEPS, "layers": (nn.Conv1d(10, 3, 1),)}
SQUARED = REGRESSION | {"loss": lambda output, target: (output - target).square().mean()}


@pytest.mark.parametrize(
    ("x", "y", "options", "words"),
    [
        (changed(GOOD, math.nan), CLASSES, {}, "In the validation data: .*NaN"),
        (changed(GOOD, math.inf), CLASSES, {}, "In the validation data: .*infinit"),
        (GOOD, changed(NUMBERS, math.nan), REGRESSION, "In the validation data: .*NaN"),
        (255 * GOOD, CLASSES, {}, "In the validation data: Column . of the inputs has a mean of"),
        (GOOD, CLASSES + 1, {}, "In the validation data: The targets go from 1 to 2, but the model gives 2 outputs"),
        (GOOD, CLASSES.int(), {}, "In the validation data: The targets are int32"),
        (GOOD, CLASSES.float(), {}, "In the validation data: The targets are float32"),
        (GOOD, CLASSES[:, None], {}, r"In the validation data: The targets have the shape \(10, 1\)"),
        (GOOD[:, :9], CLASSES, {}, r"In the validation data: The inputs are \(10, 9\) float32, in the .* \(10, 10\)"),
        (GOOD[:, :9], CLASSES, {}, r"In the validation data: The model fails on a batch of shape \(10, 9\)"),
        (GOOD.double(), CLASSES, {}, "In the validation data: The inputs are .*float64"),
        (GOOD, NUMBERS[:, 0], REGRESSION, r"In the validation data: .*\(10, 1\) and the targets \(10,\)"),
        (GOOD, NUMBERS[:, 0], SQUARED, "In the validation data: The loss does not change when targets are exchanged"),
        (GOOD, 100 + 100 * NUMBERS, REGRESSION, "In the validation data: The targets have a mean of"),
        (GOOD[:, :0], CLASSES, {}, "In the validation data: The model fails"),
        (IMAGES.repeat(1, 1, 2, 2), CLASSES, {"train_x": IMAGES, "layers": POOLED}, r"inputs are \(10, 3, 16, 16\)"),
        (GOOD[:0], CLASSES[:0], {}, "The first validation batch cannot be read"),
        (TIMES[:, :, :3], STEPS[:, :3], SEQUENCES, r"In the validation data: The outputs \(10, 3, 3\) may have"),
        (GOOD, CLASSES + 1, {"in_memory": True, "layers": (nn.Linear(10, 3),)}, "have samples of 2, the training"),
        (GOOD, 0 * CLASSES, {"in_memory": True}, "The validation data have no sample of 1"),
    ],
)
def test_problems_of_the_validation_data_are_reported(x, y, options, words) -> None:
    findings = validated(x, y, **options)
    assert any(re.search(words, finding.what) for finding in findings), findings
    assert all("validation" in finding.what for finding in findings), findings
    assert not validated(options.get("train_x", GOOD), options.get("train_y", CLASSES), **options)


@pytest.mark.parametrize(
    ("x", "y"),
    [(changed(GOOD, math.nan), CLASSES), (255 * GOOD, CLASSES), (GOOD, CLASSES.int()), (GOOD[:, :9], CLASSES)],
)
def test_a_problem_of_both_parts_is_reported_once(x, y) -> None:
    findings = validated(x, y, train_x=x, train_y=y)
    assert findings
    assert not any("validation" in finding.what for finding in findings)


@pytest.mark.parametrize(
    ("train", "valid", "options", "words"),
    [
        ((GOOD + 4, CLASSES), (255 * GOOD + 4, CLASSES), {}, "Column . of the inputs has"),
        ((changed(GOOD, math.nan), NUMBERS), (GOOD, changed(NUMBERS, math.nan)), REGRESSION, "NaN"),
        ((GOOD, 100 + NUMBERS), (GOOD, 1e6 * NUMBERS), REGRESSION, "The targets have a mean of"),
        ((GOOD, CLASSES.float()), (GOOD, CLASSES.int()), {}, "int32"),
    ],
)
def test_a_problem_of_one_part_does_not_hide_another_of_the_other(train, valid, options, words) -> None:
    findings = validated(*valid, **{**options, "train_x": train[0], "train_y": train[1]})
    assert any("validation" not in finding.what for finding in findings)
    assert any(re.search(f"In the validation data: .*{words}", finding.what) for finding in findings), findings


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["sine", "line", "step", "trend"]), st.booleans(), st.integers(0, 9))
def test_validation_data_in_order_are_no_problem(shape, scaled, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 1, 2000)
    curve = {"sine": (6 * time).sin(), "line": 2 * time, "step": (time > 0.9).float(), "trend": 10 * time.square()}
    x = torch.stack([curve[shape], (6 * time).cos(), torch.randn(2000, generator=generator)], 1)
    y = (1 if scaled else 50) * x[:, :1]
    if scaled:
        x, y = ((values - values.mean(0)) / values.std(0) for values in (x, y))
    rows = torch.randperm(2000, generator=generator)
    valid, train = rows[:400].sort().values, rows[400:]
    options = REGRESSION | {"layers": (nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))}
    for part in (valid, valid.flip(0)):
        findings = validated(x[part], y[part], **{**options, "train_x": x[train], "train_y": y[train]})
        assert not any("validation" in finding.what for finding in findings), findings


def test_a_batch_without_inputs_can_be_checked() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.1, -0.1]))

        def forward(self) -> torch.Tensor:
            return self.logits.expand(4, 2)

    batches = [((), torch.tensor([0, 1, 0, 1]))] * 10
    learn = Learner(DataBunch(batches, batches, device="cpu"), Constant(), loss_func=nn.CrossEntropyLoss())
    assert not any("validation" in finding.what for finding in learn.check().findings)


@pytest.mark.parametrize(
    ("in_training", "in_validation", "words"),
    [
        ([1000, 6], [500, 0], None),  # 3 samples expected
        ([1000, 100], [500, 0], "no sample of 1.* nothing about it. Add validation samples of it,"),
        ([1000, 100, 100], [500, 0, 0], "no sample of 1, 2.* nothing about them. Add validation samples of them,"),
        ([10] * 100, [0, 5] * 50, None),
        ([1000, 0, 0], [500, 1, 0], "have samples of 1, .* Add training samples of it,"),
        ([1000, 0, 0], [500, 1, 1], "have samples of 1, 2, .* Add training samples of them,"),
    ],
)
def test_classes_of_one_part_are_reported_unless_it_may_be_chance(in_training, in_validation, words) -> None:
    y, valid_y = (torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for n in (in_training, in_validation))
    x, valid_x = (torch.randn(len(part), 10) for part in (y, valid_y))
    layers = [nn.Linear(10, len(in_training))]
    findings = validated(valid_x, valid_y, train_x=x, train_y=y, layers=layers, in_memory=True)
    texts = [f"{f.what} {f.why} {f.remedy}" for f in findings if "The validation data have" in f.what]
    assert len(texts) == (words is not None)
    assert not texts or re.search(words, texts[0])


def test_a_validation_set_that_cannot_be_read_is_reported() -> None:
    class Broken(TensorDataset):
        def __getitem__(self, index):
            raise OSError("sample.png is truncated")

    train_dl, valid_dl = (DataLoader(kind(GOOD, CLASSES), 10) for kind in (TensorDataset, Broken))
    learn = Learner(DataBunch(train_dl, valid_dl, device="cpu"), simple_ann(10, 2), loss_func=nn.CrossEntropyLoss())
    assert only_finding(learn).what == "The first validation batch cannot be read: sample.png is truncated"


def test_inputs_that_are_not_finite():
    x = torch.randn(120, 10)
    x[3, 4] = torch.nan
    assert "The batch's inputs hold NaN or infinity." in only_finding(learner(x=x)).what


class Ignores(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 2)

    def forward(self, x):
        return self.layer(torch.ones_like(x))


def test_a_model_that_cannot_overfit_a_batch():
    finding = only_finding(learner(Ignores()))
    assert finding.what.startswith("The model cannot overfit 10 samples: their loss is 0.69")
    assert "0.693 for a constant prediction" in finding.what


def test_targets_far_from_zero_cannot_be_overfitted():
    x = torch.randn(120, 10)
    learn = learner(nn.Linear(10, 1), x, x[:, :1] + 1000, loss_func=nn.MSELoss())
    overfit, scale = learn.check().findings
    assert "cannot overfit" in overfit.what
    assert scale.what.startswith("The targets have a mean of 1e+03 and")


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), functional.huber_loss])
@pytest.mark.parametrize(
    ("mean", "std", "reported"),
    [(0, 1, False), (0, 5, False), (1, 1, False), (0, 50, True), (20, 1, True), (300, 60, True), (0, 0.001, True)],
)
def test_targets_of_another_scale_than_the_outputs_are_reported(loss, mean, std, reported):
    x = torch.randn(120, 10, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x[:, 0], mean + std * x[:, 0]], 1)
    findings = learner(nn.Linear(10, 2), x, y, loss_func=loss).check().findings
    assert any(f.what.startswith("Column 1 of the targets has") and "* std + mean" in f.remedy for f in findings) == (
        reported
    )


class OfFlatTargets(nn.MSELoss):
    def forward(self, input, target):
        return super().forward(input, target.flatten(1))


def test_images_as_targets_have_one_scale():
    y = 300 + torch.randn(120, 1, 4, 4)
    findings = learner(nn.Linear(10, 16), torch.randn(120, 10), y, loss_func=OfFlatTargets()).check().findings
    assert any(finding.what.startswith("The targets have a mean of 300") for finding in findings)


def test_targets_that_the_model_scales_itself_are_not_reported():
    table = pd.DataFrame({"a": torch.randn(200).numpy()})
    table["price"] = 4000 + 800 * table["a"]
    data = TabularDataBunch.from_df(".", table, "price", bs=16, seed=0, device="cpu")
    learn = tabular_learner(data, layers=[20], silent=True)
    assert not any("targets" in finding.what for finding in learn.check().findings)
    raw = Learner(data, TabularModel([], 1, 1, [20]), silent=True)
    assert any("targets" in finding.what for finding in raw.check().findings)


class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = simple_ann(10, 2)
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x)


def test_parameters_that_get_no_gradient():
    finding = only_finding(learner(Spare()))
    assert finding.what == "spare.weight, spare.bias get no gradient."
    assert not finding.mild


def test_dead_units():
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.constant_(model[0].bias, -100.0)
    problems = [finding.what for finding in learner(model).check().findings]
    assert problems[0] == "The gradient of 0.weight, 0.bias, 2.weight is 0 for every sample."
    assert "cannot overfit" in problems[1]


def test_initial_weights_of_zero_are_not_dead():
    model = simple_ann(10, 2)
    nn.init.zeros_(model[3].weight)
    assert learner(model).check().findings == []


def test_small_gradients_are_no_problem_in_float16():
    def tiny(output, target):
        return 1e-8 * nn.functional.cross_entropy(output, target)

    learn = learner(simple_ann(10, 2), loss_func=tiny).to_fp16()
    assert learn.check().findings == []
    assert learn.precision is torch.float16


def test_frozen_parameters_are_mild_unless_all_are_frozen():
    model = simple_ann(10, 2)
    model[1].requires_grad_(False)
    finding = only_finding(learner(model))
    assert finding.what == "2 of 4 parameters are frozen: 1.weight, 1.bias."
    assert finding.mild
    model.requires_grad_(False)
    finding = only_finding(learner(model))
    assert finding.what == "4 of 4 parameters are frozen: 1.weight, 1.bias, 3.weight, 3.bias."
    assert not finding.mild


def test_a_model_that_changed_after_the_optimizer_was_made():
    learn = learner()
    learn.fit(1)
    learn.model[3] = nn.Linear(64, 2)
    assert not learn.check().findings
    learn.layer_groups = [learn.model[1]]
    assert only_finding(learn).what.startswith(
        "The layer groups do not match the model: 3.weight is in none of `layer_groups`"
    )


def test_no_momentum_to_schedule():
    finding = only_finding(learner(opt_func=torch.optim.SGD))
    assert finding.what == "SGD works without momentum here."
    assert finding.remedy.startswith("Pass opt_func=partial(torch.optim.SGD, momentum=0.9)")
    assert finding.mild
    assert (
        only_finding(learner(opt_func=torch.optim.Adagrad)).remedy
        == "Use AdamW or SGD with momentum, or train with fit."
    )


def test_a_schedule_of_few_steps():
    learn = toy_learner()
    finding = only_finding(learn)
    assert finding.what == "1 epoch of 3 batches: 3 steps in total."
    assert (
        finding.remedy
        == "Use a smaller batch size, or train for 4 epochs or more: learn.check(epochs) takes the number."
    )
    assert "2 epochs of 3 batches" in learn.check(2).findings[0].what
    assert learn.check(4).findings == []


@pytest.mark.parametrize(
    ("x", "what"),
    [
        (
            torch.arange(120 * 16.0).view(120, 1, 4, 4) % 255,
            "The inputs have a mean of 79.5 and a standard deviation of",
        ),
        (torch.cat([torch.zeros(120, 9), 40.0 + CLASSES[:, None]], 1), "Column 9 of the inputs has a mean of 40.5"),
        (CLASSES.view(120, 1, 1, 1).expand(-1, 1, 3, 3) / 1e3, "mean of 0.0005 and a standard deviation of 0.0005"),
    ],
)
def test_inputs_of_another_scale(x, what):
    model = simple_ann(x[0].numel(), 2)
    findings = learner(model, x).check().findings
    (finding,) = [finding for finding in findings if finding.mild]
    assert what in finding.what
    assert "data.normalize()" in finding.remedy


def test_no_batch_is_an_error():
    learn = Learner(DataBunch([], device="cpu"), simple_ann(10, 2), loss_func=nn.CrossEntropyLoss())
    with pytest.raises(DataError, match="has no batch"):
        learn.check()
    with pytest.raises(ValueError, match="`epochs` must be at least 1, got 0"):
        learner().check(0)


# --- state


@pytest.mark.parametrize("trained", [False, True])
def test_training_is_the_same_after_a_check(trained):
    weights = []
    for checked in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        learn = Learner(toy_data(shuffle=True), model, silent=True)
        if trained:
            learn.fit(2, 1e-2)
        before, opt = dict(vars(learn)), learn.opt and learn.opt.state_dict()
        n = len(learn.history)
        if checked:
            learn.check()
            assert all(vars(learn)[name] is value for name, value in before.items())
            assert len(learn.history) == n
            assert all(p.grad is None for p in learn.model.parameters())
            assert str(learn.opt and learn.opt.state_dict()) == str(opt)
        learn.fit_one_cycle(2, 1e-2)
        weights.append((learn.model.state_dict(), torch.rand(1)))
    (a, random_a), (b, random_b) = weights
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(random_a, random_b)


def test_a_check_of_a_failing_model_restores_the_state():
    learn = learner(nn.Linear(7, 2))
    learn.model.eval()
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    generator = torch.get_rng_state()
    learn.check()
    assert all(torch.equal(value, before[name]) for name, value in learn.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not learn.model.training


# --- text


# --- buffers


class Buffered(nn.Module):
    """A model whose backward pass needs a buffer, and which may return its own loss."""

    def __init__(self, own_loss, dtype, of_view, norm, counts):
        super().__init__()
        whole = torch.arange(1, 33, dtype=dtype)[None]
        self.register_buffer("whole", whole, persistent=False)
        self.register_buffer("part", whole[:, :10] if of_view else torch.arange(1, 11, dtype=dtype)[None])
        self.embedding, self.layer = nn.Embedding(33, 8), nn.Linear(8, 2)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.own_loss, self.counts = own_loss, counts
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, labels=None):
        if self.counts:
            self.calls += 1
        scale = x * self.part
        positions = self.embedding(self.part.long()) + self.embedding(self.whole[:, : x.shape[1]].long())
        logits = self.layer(self.norm((positions * scale[..., None]).mean(1)))
        if not self.own_loss:
            return logits
        return {"loss": None if labels is None else functional.cross_entropy(logits, labels), "logits": logits}


@settings(max_examples=16, deadline=None)
@given(st.booleans(), st.sampled_from([torch.int64, torch.float32]), st.booleans(), st.booleans(), st.booleans())
def test_a_model_with_buffers_has_no_problem_in_its_backward_pass(own_loss, dtype, of_view, norm, counts):
    torch.manual_seed(0)
    x = torch.randn(60, 10)
    y = (x.sum(1) > 0).long()
    samples = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    data = DataBunch.create(samples, bs=20, seed=0, device="cpu")
    loss_func = None if own_loss else nn.CrossEntropyLoss()
    learn = Learner(data, Buffered(own_loss, dtype, of_view, norm, counts), loss_func=loss_func, silent=True)
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    found = str(learn.check(4))
    assert "backward pass fails" not in found
    assert "samples reduce their loss from" in found
    assert all(torch.equal(value, before[name]) for name, value in learn.model.state_dict().items())


@pytest.mark.parametrize("own_loss", [True, False])
def test_a_prediction_between_forward_and_backward_pass_leaves_the_buffers(own_loss):
    class Predicts(Callback):
        def on_backward_begin(self):
            learn.pred_batch(batch=({"x": x[:1]}, None))

    torch.manual_seed(0)
    x = torch.randn(60, 10)
    samples = [{"x": a, "labels": b} for a, b in zip(x, (x.sum(1) > 0).long(), strict=True)]
    data = DataBunch.create(samples, bs=20, seed=0, device="cpu")
    loss_func = None if own_loss else nn.CrossEntropyLoss()
    learn = Learner(data, Buffered(own_loss, torch.int64, True, False, False), loss_func=loss_func, silent=True)
    plain = copy.deepcopy(learn)
    learn.fit(1, callbacks=[Predicts()])
    plain.fit(1)
    assert torch.equal(learn.model.layer.weight, plain.model.layer.weight)


def test_a_long_error_ends_with_a_whole_word():
    def fails(output, target):
        raise RuntimeError("incomprehensible " * 40)

    assert re.search(r"( incomprehensible){5,} \.\.\.$", only_finding(learner(loss_func=fails)).what)


def test_results_are_text_and_html():
    torch.manual_seed(0)
    result = learner(nn.Sequential(simple_ann(10, 2), nn.Softmax(1)), opt_func=torch.optim.SGD).check()
    lines = str(result).splitlines()
    assert lines[0].startswith("2 problems found. The initial loss is 0.6")
    assert lines[1] == f"1. {result.findings[0].what}"
    assert lines[4] == "2. SGD works without momentum here. (This may be intended.)"
    assert repr(result) == str(result)
    assert result._repr_html_().count("<li>") == 2
    no_problem = CheckResult([], "a < b")
    assert str(no_problem) == "No problem found. a < b"
    assert no_problem._repr_html_() == "<p><b>No problem found.</b> a &lt; b</p>"


def test_the_old_name_of_a_remedy_warns():
    with pytest.warns(
        DeprecationWarning, match="way_out is now called remedy; the old name will be removed in version 0.3"
    ):
        assert Finding("a", "b", "c").way_out == "c"


@pytest.mark.slow
def test_the_example_of_the_readme_has_no_problem_and_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "learn.check()" in block]
    names: dict[str, object] = {}
    set_seed(0)
    exec(f"from minifast import *\n{example}", names)
    assert capsys.readouterr().out.startswith("No problem found.")
    assert names["learn"].recorder.metrics[-1][0] > 0.85
