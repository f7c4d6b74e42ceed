"""Data that cannot be trained or validated raise one clear sentence before the first step."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from conftest import slow
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import Callback, DataBunch, Learner, TensorDataBunch, simple_ann
from minifast.errors import DataError
from minifast.losses import MSELossFlat

X, Y = torch.randn(32, 4), torch.arange(32) % 2
WORDS = [(x, ["cat", "dog"][int(y)]) for x, y in zip(X, Y, strict=True)]


@pytest.mark.parametrize(
    ("dataset", "n_outputs", "loss", "message"),
    [
        (TensorDataset(X, Y[:, None]), 1, nn.BCEWithLogitsLoss(), "int64, but BCEWithLogitsLoss needs floats"),
        (TensorDataset(X, Y.int()), 2, nn.CrossEntropyLoss(), "int32, but CrossEntropyLoss needs int64"),
        (TensorDataset(X, Y.bool()), 2, nn.CrossEntropyLoss(), "bool, but CrossEntropyLoss needs int64"),
        (TensorDataset(X, Y.float()), 2, nn.CrossEntropyLoss(), "float32, but CrossEntropyLoss needs class numbers"),
        (TensorDataset(X, Y[:, None]), 2, nn.functional.cross_entropy, r"\(8, 1\), but cross_entropy needs \(8,\)"),
        (TensorDataset(X.double(), Y), 2, nn.CrossEntropyLoss(), "inputs are float64, but .* float32"),
        (WORDS, 2, nn.CrossEntropyLoss(), "The targets are texts"),
        ([(X.numpy(), Y)], 2, nn.CrossEntropyLoss(), "inputs are of the type ndarray, but the model needs tensors"),
        ([(X, Y.tolist())], 2, nn.CrossEntropyLoss(), "targets are a list, but CrossEntropyLoss needs a tensor"),
        ([(X, None)], 2, nn.MSELoss(), "targets are None, but MSELoss needs a tensor"),
        (TensorDataset(X, Y + 2), 2, nn.CrossEntropyLoss(), "targets go from 2 to 3, but the model gives 2 outputs"),
        (TensorDataset(X, X[:, 0]), 1, nn.MSELoss(), r"\(8, 1\) and the targets \(8,\), which MSELoss would broadcast"),
    ],
)
@pytest.mark.parametrize(
    "call", [lambda learn: learn.fit(1), Learner.validate, Learner.lr_find], ids=["fit", "validate", "lr_find"]
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_types_and_shapes_that_do_not_fit_raise_one_sentence(dataset, n_outputs, loss, message, call) -> None:
    batches = dataset if isinstance(dataset, list) and dataset is not WORDS else DataLoader(dataset, 8)
    learn = Learner(DataBunch(batches, batches, device="cpu"), nn.Linear(4, n_outputs), loss_func=loss, silent=True)
    with pytest.raises(DataError, match=message):
        call(learn)
    with pytest.raises(DataError):
        learn.get_preds(with_loss=True)


@pytest.mark.parametrize("call", ["fit", "validate", "validate within a fit"])
def test_a_later_batch_that_the_loss_would_broadcast_raises(call) -> None:
    good, bad = [(X[:1], X[:1, :1])], [(X[:8], X[:8, 0])]
    train, valid = (good, good + bad) if call == "validate within a fit" else (good + bad, good + bad)
    learn = Learner(DataBunch(train, valid, device="cpu"), nn.Linear(4, 1), loss_func=nn.MSELoss(), silent=True)
    with pytest.raises(DataError, match=r"\(8, 1\) and the targets \(8,\), which MSELoss would broadcast"):
        learn.validate() if call == "validate" else learn.fit(1)


def test_an_error_of_a_callback_is_not_taken_for_one_of_the_batch() -> None:
    class Failing(Callback):
        def on_batch_end(self, train) -> None:
            if not train:
                raise RuntimeError("no space on the device")

    class OwnEntropy(nn.CrossEntropyLoss):
        def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return super().forward(input, target.long())

    batches = [(X, Y.int())]
    learn = Learner(DataBunch(batches, batches, device="cpu"), nn.Linear(4, 2), loss_func=OwnEntropy(), silent=True)
    learn.callbacks.append(Failing())
    for call in (learn.validate, lambda: learn.fit(1)):
        with pytest.raises(RuntimeError, match="no space on the device"):
            call()


def test_another_error_of_the_model_stays_as_it_is() -> None:
    class Failing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no memory")

    learn = Learner(DataBunch([(X.double(), Y)], device="cpu", classes=["a", "b"]), Failing(4, 2), silent=True)
    with pytest.raises(RuntimeError, match="no memory"):
        learn.fit(1)


def test_validation_data_without_a_batch_warn_before_training() -> None:
    valid = DataLoader(TensorDataset(X[:5], Y[:5]), 16, drop_last=True)
    learn = Learner(DataBunch([(X, Y)], valid, device="cpu", classes=["a", "b"]), nn.Linear(4, 2), silent=True)
    with pytest.warns(UserWarning, match="validation data have no batch"):
        learn.fit(1)


LOADER = DataLoader(TensorDataset(X, Y), 8)


@pytest.mark.parametrize(
    ("valid", "message"),
    [
        ([LOADER, LOADER], "one loader, got a list of several"),
        ({"a": LOADER}, "one loader, got a dict of several"),
    ],
)
def test_several_validation_loaders_raise_when_the_data_are_made(valid, message) -> None:
    with pytest.raises(DataError, match=message):
        DataBunch(LOADER, valid, device="cpu")


def test_a_list_of_validation_batches_that_are_no_pairs_raises_before_training() -> None:
    learn = Learner(DataBunch(LOADER, [(X, Y, Y)], device="cpu", classes=["a", "b"]), nn.Linear(4, 2), silent=True)
    with pytest.raises(DataError, match=r"are 2 values, but Linear.forward\(input\) does not take these"):
        learn.fit(1)
    assert learn.opt is None


@pytest.mark.parametrize(
    ("x", "y", "width", "classes", "message"),
    [
        (torch.ones(4, 3), torch.tensor([0.0, 1, 1, 0]), 2, None, r"y\.long\(\) so that the loss is cross entropy"),
        (torch.ones(4, 3), torch.tensor([[0.0], [1], [1], [0]]), 2, None, r"y\.squeeze\(1\)\.long\(\)"),
        (
            torch.ones(4, 3),
            torch.tensor([0.5, 1, 1, 0]),
            2,
            None,
            "2 outputs; for regression give the last",
        ),
        (torch.ones(4, 3).int(), torch.tensor([0, 1, 1, 0]), 2, None, r"inputs are int32, .*x\.to\(torch\.float32\)"),
        (torch.ones(4, 3).byte(), torch.tensor([0, 1, 1, 0]), 2, None, r"inputs are uint8, .*float32\) / 255"),
        (torch.ones(4, 3).double(), torch.tensor([0, 1, 1, 0]), 2, None, "inputs are float64, but"),
        (torch.ones(4, 3), torch.tensor([0, 1, 1, 0]), 2, ["a"], r"targets go up to 1, but `classes` has 1 name \(a\)"),
        (torch.ones(4, 3), torch.tensor([0, 1, 1, 0]), 1, ["a"], r"targets go up to 1, but `classes` has 1 name \(a\)"),
    ],
)
def test_the_fit_and_the_check_name_the_same_cause(x, y, width, classes, message):
    dataset = list(TensorDataset(x, y))  # whose targets the bunch does not check
    data = DataBunch(DataLoader(dataset, 4), device="cpu", classes=classes)
    learn = Learner(data, nn.Linear(3, width), silent=True)
    with pytest.raises(DataError, match=message) as caught:
        learn.fit(1)
    if hasattr(caught.value, "__notes__"):
        assert "learn.check() finds such problems" in caught.value.__notes__[0]
    problem, _, remedy = str(caught.value).partition("\n")[0].partition("; ")
    finding = learn.check().findings[0]
    assert (finding.what, finding.remedy.lower()) == (f"{problem}.", remedy.lower())


def test_an_embedding_needs_integers():
    dataset = TensorDataset(torch.ones(4, 3), torch.tensor([0, 1, 1, 0]))
    model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(DataError, match=r"embedding layer needs int64; convert the inputs with x\.long\(\)"):
        Learner(DataBunch(DataLoader(dataset, 4), device="cpu"), model, silent=True).fit(1)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            torch.zeros(4, 1, dtype=torch.int64),
            r"integers of shape \(n, 1\); give class numbers as \(n,\), with y\.squeeze",
        ),
        (torch.zeros(4, 2, dtype=torch.int64), "each target has 2 integers; pass `loss_func`"),
    ],
)
def test_why_there_is_no_default_loss(y, message):
    with pytest.raises(DataError, match=message):
        Learner(DataBunch(DataLoader(TensorDataset(torch.ones(4, 3), y), 4), device="cpu"), nn.Linear(3, 2))


SCHEDULER = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"callbacks": [SCHEDULER]},
            r"callbacks holds a scheduler of torch.*TorchScheduler\(lambda opt: .*StepLR\(opt",
        ),
        ({"callbacks": [torch.optim.lr_scheduler.StepLR]}, "callbacks holds a scheduler of torch"),
        ({"callback_fns": [SCHEDULER]}, "callback_fns holds a scheduler of torch"),
        ({"opt_func": SCHEDULER}, "`opt_func` must make an optimizer, got a scheduler; .*TorchScheduler"),
        (
            {"opt_func": SCHEDULER.optimizer},
            r"`opt_func` is an optimizer of the class SGD; .*opt_func=torch\.optim\.SGD",
        ),
        ({"opt_func": "adamw"}, r"Did you mean torch\.optim\.AdamW\?$"),
    ],
)
def test_optimizers_and_schedulers_of_torch_in_the_wrong_place(arguments, message):
    dataset = TensorDataset(torch.ones(4, 3), torch.tensor([0, 1, 1, 0]))
    with pytest.raises(TypeError, match=message):
        Learner(DataBunch(DataLoader(dataset, 4), device="cpu"), nn.Linear(3, 2), **arguments)


# --- classes of several positions


class Positions(nn.Module):
    """Outputs of the shape that a language model or a channels-last network gives."""

    def __init__(self, shape, moved):
        super().__init__()
        self.outputs, self.moved = nn.Parameter(torch.randn(shape)), moved

    def forward(self, x):
        output = self.outputs.expand(len(x), *self.outputs.shape)
        return output.movedim(-1, 1) if self.moved else output


def positions(sizes, classes, loss, moved=False):
    x, y = torch.randn(8, 2), torch.randint(classes, (8, *sizes))
    data = DataBunch([(x, y)] * 2, device="cpu")
    return Learner(data, Positions((*sizes, classes), moved), loss_func=loss, silent=True)


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), *slow(nn.functional.cross_entropy)], ids=["module", "function"]
)
@settings(deadline=None, max_examples=12)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=2), classes=st.integers(2, 5))
def test_classes_in_the_last_dimension_raise_or_are_reported(loss, sizes, classes):
    ambiguous = [*sizes[1:], classes] == sizes
    learn = positions(sizes, classes, loss)
    found = str(learn.check(9))
    if ambiguous:
        assert "cross entropy takes dimension 1" in found
        return
    assert "the classes are in the last dimension" in found
    with pytest.raises(DataError, match=r"but cross entropy takes them from dimension 1; let the model return") as info:
        learn.fit(1)
    cure = re.search(r"loss_func=(lambda .*, target\))", str(info.value))[1]
    fixed = positions(sizes, classes, eval(cure))
    fixed.model.load_state_dict(learn.model.state_dict())
    fixed.data = learn.data
    y, output = learn.data.one_batch()[1], learn.model(torch.zeros(8, 2)).detach()
    assert fixed.validate(learn.data.train_dl)[0] == pytest.approx(
        float(nn.functional.cross_entropy(output.flatten(0, -2), y.flatten())), rel=1e-5
    )
    other = positions(sizes, classes, loss, moved=True)
    other.fit(1)
    assert "last dimension" not in str(other.check(9))


def test_a_cross_entropy_that_moves_the_classes_itself_takes_the_last_dimension():
    class Moves(nn.CrossEntropyLoss):
        def forward(self, output, target):
            return super().forward(output.movedim(-1, 1), target)

    for classes in (3, 4):
        learn = positions([4], classes, Moves())
        learn.fit(1)
        assert "dimension" not in str(learn.check(9))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("kind", ["loader", "arrays"])
def test_floats_of_two_classes_warn_under_the_default_loss(kind, shape):
    x = torch.randn(40, 4)
    y = (x[:, 0] > 0).float().view(shape)

    def learner(targets, loss_func=None):
        if kind == "arrays":
            data = TensorDataBunch.from_arrays(x, targets, bs=20, device="cpu")
        else:
            data = DataBunch(DataLoader(TensorDataset(x, targets), 20), device="cpu")
        return Learner(data, simple_ann(4, 1), loss_func=loss_func, silent=True)

    with pytest.warns(UserWarning, match=r"The targets are 0 and 1 as floats.*loss_func=nn.BCEWithLogitsLoss\(\)"):
        learner(y).fit(1)
    for targets, loss_func in ((y, MSELossFlat()), (y + 0.5, None), (torch.zeros_like(y), None)):
        learner(targets, loss_func).fit(1)  # warnings are errors


CURE = re.compile(r"(?:y|output)(?:\[:, None\]|\.squeeze\(1\)|\.long\(\)|\.float\(\))+")


@pytest.mark.parametrize(("given", "returned"), [((40,), (-1, 1)), ((40, 1), (-1,)), ((40, 1, 2), (-1, 2))])
def test_the_advice_for_two_classes_with_one_output_is_code_that_runs(given, returned):
    class Model(nn.Linear):
        def forward(self, x):
            output = super().forward(x) if "long" in change else super().forward(x).view(returned)
            return eval(change, {"output": output}) if change.startswith("output") else output

    def learner(loss_func, outputs, targets):
        data = DataBunch(DataLoader(TensorDataset(torch.randn(40, 4), targets), 20), device="cpu")
        return Learner(data, Model(4, outputs), loss_func=loss_func, silent=True)

    loss_func, n, change = nn.BCEWithLogitsLoss(), given[2:].count(2) + 1, "output"
    y = (torch.arange(40 * n) % 2).float().view(given)
    with pytest.raises(DataError, match="which BCEWithLogitsLoss would broadcast") as error:
        learner(loss_func, n, y).fit(1)
    texts = [str(error.value), str(learner(loss_func, n, y).check())]
    if n == 1:  # the default loss flattens
        with pytest.warns(UserWarning, match="The targets are 0 and 1 as floats") as warned:
            learner(None, 1, y).fit(1)
        texts += [str(warned[0].message), str(learner(None, 1, y).check())]
    for text in texts:
        assert {cure[0] for cure in CURE.findall(text)} == {"y", "o"}, text
        for change in CURE.findall(text):
            targets = y if change.startswith("output") else eval(change)
            if "long" in change:
                learner(None, 2, targets).fit(1)
            else:
                learner(loss_func, n, targets).fit(1)


class OwnLoss(nn.Module):
    """A loss of the user's own that squares differences, and counts its calls."""

    def __init__(self, flattens: bool = False, noise: float = 0.0) -> None:
        super().__init__()
        self.flattens, self.noise, self.calls = flattens, noise, 0

    def forward(self, output, target):
        self.calls += 1
        output, target = (output.flatten(), target.flatten()) if self.flattens else (output, target)
        return ((output - target).square() * (1 + self.noise * torch.rand(()))).mean()


OWN_LOSSES = {
    "function": lambda output, target: (output - target).square().mean(),
    "sum": lambda output, target: (output - target).square().sum(),
    "maximum": lambda output, target: (output - target).abs().max(),
    "clamped": lambda output, target: (output - target).abs().clamp(max=0.5).mean(),
    "log-cosh": lambda output, target: (output - target).cosh().log().mean(),
    "module": OwnLoss(),
    "random": OwnLoss(noise=0.5),
}
PAIRED = {
    "flattens": OwnLoss(flattens=True),
    "random": OwnLoss(flattens=True, noise=0.5),
    "squeezes": lambda output, target: (output.squeeze() - target.squeeze()).square().mean(),
    "of one": lambda output, target: (output.view(-1) - target.view(-1)).square().mean(),
    "means": lambda output, target: (output.mean() - target.mean()).square() + 0 * output.sum(),
    "all pairs": lambda output, target: (output.view(-1, 1) - target.view(-1)).square().mean(),
    "moments": lambda output, target: (output.var(correction=0) - target.var(correction=0)).square(),
    "no target": lambda output, target: output.square().mean(),
    "library": MSELossFlat(),
}


def warnings_of(loss_func, n: int, output_is_column: bool, target_is_column: bool, scale: float = 1.0) -> list[str]:
    torch.manual_seed(n)
    x = torch.randn(n, 4)
    y = scale * x.sum(1) + torch.randn(n)
    model = nn.Linear(4, 1) if output_is_column else nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    batches = [(x, y[:, None] if target_is_column else y)] * 2
    learn = Learner(DataBunch(batches, batches, device="cpu"), model, loss_func=loss_func, silent=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn.fit(2, 1e-3)
    return [str(warning.message) for warning in caught]


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(OWN_LOSSES)), st.sampled_from([2, 3, 64, 99]), st.booleans(), st.sampled_from([0.01, 1]))
@example("function", 2000, True, 1)
def test_a_loss_of_the_users_own_that_broadcasts_warns_once(loss, n, is_column, scale) -> None:
    (warning,) = warnings_of(OWN_LOSSES[loss], n, is_column, not is_column, scale)
    assert f"broadcasts them to ({n}, {n})" in warning
    assert ("output.squeeze(1)" if is_column else "target.squeeze(1)") in warning
    assert not warnings_of(OWN_LOSSES[loss], n, is_column, is_column)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(PAIRED)), st.sampled_from([1, 2, 3, 64]), st.booleans(), st.booleans())
def test_a_loss_that_pairs_samples_does_not_warn(loss, n, output_is_column, target_is_column) -> None:
    assert not warnings_of(PAIRED[loss], n, output_is_column, target_is_column)


@pytest.mark.parametrize(("output_is_column", "calls"), [(False, 8), (True, 9)])
def test_a_loss_that_pairs_samples_is_called_once_more(output_is_column, calls) -> None:
    seen = []

    def flattens(output, target):
        seen.append(output)
        return (output.view(-1) - target.view(-1)).square().mean()

    assert not warnings_of(flattens, 64, output_is_column, target_is_column=False)
    assert len(seen) == calls  # 2 epochs of 2 batches of each part


def test_the_trial_of_a_loss_changes_no_number_and_no_state() -> None:
    losses, calls = [], []
    for loss_func, is_column in ((OwnLoss(True, 0.5), False), (OwnLoss(True, 0.5), True)):  # the second one is tried
        batches = [(X, X[:, :1] if is_column else X[:, 0])] * 2
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
        learn = Learner(DataBunch(batches, device="cpu"), model, loss_func=loss_func, silent=True)
        learn.fit(2, 1e-2)
        losses.append(learn.recorder.losses)
        calls.append(loss_func.calls)
    assert losses[0] == losses[1]
    assert calls == [4, 4]
