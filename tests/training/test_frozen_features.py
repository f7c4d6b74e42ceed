"""Features of frozen layers that are computed once: the same result, fewer computations, and when not."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import slow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    Callback,
    DataBunch,
    EMACallback,
    GradientClipping,
    Learner,
    MixUpCallback,
    TensorDataBunch,
    TensorLoader,
    accuracy,
    get_transforms,
)
from minifast.training import features

N, CLASSES = 50, 3
N_TRIED = 2 * 2  # samples that are computed again to compare, in training and in validation


class Counted(nn.Conv2d):
    """A layer that counts its samples in a list that no attribute refers to."""

    def forward(self, x):
        SAMPLES.append(len(x))
        return super().forward(x)


SAMPLES: list[int] = []


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


class OwnNoise(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.generator)


class Centered(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class OwnForward(nn.Sequential):
    def forward(self, x):
        return super().forward(x)


def make_data(kind="memory", **options):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(N, 3, 8, 8, generator=generator) * 255).to(torch.uint8)
    y = torch.randint(CLASSES, (N,), generator=generator)
    if kind == "memory":
        return TensorDataBunch.from_arrays(x, y, bs=8, seed=0, device="cpu", **options)
    dataset = TensorDataset(x.float() / 255, y)
    return DataBunch(
        DataLoader(dataset, 8, shuffle=True), DataLoader(dataset, 8), device="cpu", classes=["a", "b", "c"]
    )


def make_learner(extra=(), data=None, precompute=True, head=(), outer=nn.Sequential, **options) -> Learner:
    torch.manual_seed(0)
    body = nn.Sequential(Counted(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *(layer() for layer in extra))
    body[1].running_mean.uniform_()
    head_layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), *head, nn.Linear(16, CLASSES))
    model = outer(body, head_layers)
    options = {"metrics": [accuracy], "silent": True} | options
    learn = Learner(make_data() if data is None else data, model, precompute=precompute, **options)
    learn.split([head_layers])
    learn.freeze()
    SAMPLES.clear()
    return learn


def weights(learn: Learner) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in learn.model.state_dict().values()])


def both(epochs=3, before=None, **options):
    """Train with and without features that are computed once; return learners and the samples that were computed."""
    learners, samples = [], []
    for precompute in (True, False):
        torch.manual_seed(0)
        given = {name: value() if callable(value) else value for name, value in options.items()}
        learn = make_learner(precompute=precompute, **given)
        if before:
            before(learn)
        torch.manual_seed(1)
        learn.fit(epochs, 1e-2)
        learners.append(learn)
        samples.append(sum(SAMPLES))
    return learners, samples


def check_same(learners, exactly=False):
    ours, plain = learners
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(weights(ours), weights(plain), **tolerance)
    torch.testing.assert_close(ours.recorder.losses, plain.recorder.losses, **tolerance)
    torch.testing.assert_close(ours.recorder.val_losses, plain.recorder.val_losses, **tolerance)
    assert ours.recorder.lrs == plain.recorder.lrs
    assert ours.features is None


@pytest.mark.parametrize("n_examples", [3, *slow(10)])
def test_features_computed_once_give_the_same_training(n_examples):
    @settings(max_examples=n_examples, deadline=None)
    @given(
        epochs=st.integers(2, 4),
        normalized=st.booleans(),
        opt_name=st.sampled_from(["AdamW", "SGD", "Adagrad"]),
        callbacks=st.sampled_from([(), (EMACallback,), (lambda: GradientClipping(clip=0.1),)]),
    )
    def compare(epochs, normalized, opt_name, callbacks):
        def data():
            made = make_data()
            return made.normalize() if normalized else made

        makers = {"data": data, "callbacks": lambda: [make() for make in callbacks]}
        learners, samples = both(epochs, opt_func=lambda: getattr(torch.optim, opt_name), **makers)
        check_same(learners)
        assert samples[0] == N + N_TRIED + 1  # the validation sample that a fit tries
        assert samples[1] >= epochs * N

    compare()


@pytest.mark.parametrize("extra", [Noise, nn.Dropout, Counter, OwnNoise, Centered])
def test_layers_that_are_no_function_of_a_sample_are_computed_in_each_batch(extra):
    def last_frozen(learn):  # the extra layer belongs to the frozen part
        learn.model[0].append(nn.Conv2d(4, 4, 1).requires_grad_(False))

    learners, samples = both(extra=[extra], before=last_frozen)
    check_same(learners, exactly=True)
    once = 2 * N // 5 if extra is nn.Dropout else 0  # in validation, dropout is a function of a sample
    assert samples[0] >= samples[1] - once


class OfBatch(nn.Module):
    """A frozen layer whose output for a sample depends on other samples of the batch."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        return self.function(x) * self.scale


OF_BATCH = {
    "mean": lambda x: x - x.mean(0),
    "first": lambda x: x - x[0],
    "last": lambda x: x - x[-1],
    "sum so far": lambda x: x.cumsum(0),
    "neighbor": lambda x: x.roll(1, 0),
    "size": lambda x: x / len(x),
    "sorted": lambda x: x.sort(0).values,
}


@pytest.mark.parametrize("name", OF_BATCH)
@pytest.mark.parametrize("bs", [1, 2, 3, 8])
def test_layers_that_look_at_the_whole_batch_are_computed_in_each_batch_of_any_size(name, bs):
    def losses(precompute):
        torch.manual_seed(0)
        x, y = torch.randn(24, 4), torch.arange(24) % 2
        train_dl, valid_dl = TensorLoader(x, y, bs, shuffle=True, seed=0, device="cpu"), TensorLoader(x, y, 24)
        data = DataBunch(train_dl, valid_dl, device="cpu", loss_func=nn.CrossEntropyLoss())
        model = nn.Sequential(OfBatch(OF_BATCH[name]), nn.Linear(4, 2))
        learn = Learner(data, model, silent=True, precompute=precompute)
        learn.fit(2, 0.1)
        return learn.recorder.losses

    assert losses(True) == losses(False)


def test_a_layer_that_drops_the_dimension_of_a_single_sample_is_computed_in_each_batch():
    torch.manual_seed(0)
    x, y = torch.randn(9, 4, 1), torch.arange(9) % 2
    loader = TensorLoader(x, y, 4, device="cpu")  # the last batch is one sample
    data = DataBunch(
        loader, loader, device="cpu", loss_func=lambda out, y: (out.view(-1, 2).sum(1) - y).square().mean()
    )
    model = nn.Sequential(OfBatch(torch.squeeze), nn.Linear(4, 2))
    Learner(data, model, silent=True).fit(2, 0.1)


def hook(learn):
    learn.seen = []
    learn.model[0][0].register_forward_hook(lambda module, args, output: learn.seen.append(len(output)))


def hook_on_container(learn):
    learn.seen = []
    learn.model[0].register_forward_pre_hook(lambda module, args: learn.seen.append(len(args[0])))


def batch_statistics(learn):
    learn.train_bn = False


class Changes(Callback):
    """Change the images of each batch."""

    def __init__(self, in_place):
        self.in_place = in_place

    def on_batch_begin(self, last_input, train):
        if not train:
            return None
        if self.in_place:
            last_input.mul_(0.5)
            return None
        return {"last_input": last_input * 0.5}


NOT_KEPT = {
    "a hook": {"before": hook},
    "a hook on a container": {"before": hook_on_container},
    "batch statistics": {"before": batch_statistics},
    "nothing frozen": {"before": lambda learn: learn.unfreeze()},
    "one epoch": {"epochs": 1},
    "a forward of its own": {"outer": lambda: OwnForward},
    "mixup": {"callbacks": lambda: [MixUpCallback()]},
    "changed batches": {"callbacks": lambda: [Changes(in_place=False)]},
    "batches changed in place": {"callbacks": lambda: [Changes(in_place=True)]},
    "a torch DataLoader": {"data": lambda: make_data("loader")},
    "augmentation": {"data": lambda: make_data(ds_tfms=get_transforms())},
    "a transform of the user": {"data": lambda: make_data(ds_tfms=([lambda batch: batch], []))},
}


@pytest.mark.parametrize("options", NOT_KEPT.values(), ids=NOT_KEPT)
def test_training_stays_bitwise_the_same_where_features_are_not_kept(options):
    learners, _ = both(**options)
    ours, plain = learners
    torch.testing.assert_close(weights(ours), weights(plain), rtol=0, atol=0)
    assert ours.recorder.losses == plain.recorder.losses
    assert getattr(ours, "seen", None) == getattr(plain, "seen", None)


class At(Callback):
    """Change the learner when epoch 1 begins."""

    def __init__(self, learn, change):
        self.learn = learn
        self.change = change

    def on_epoch_begin(self, epoch):
        if epoch == 1:
            with torch.no_grad():
                self.change(self.learn.model[0])


def replace_layer(body):
    body[0] = nn.Conv2d(3, 4, 3, padding=1, bias=False).requires_grad_(False)
    nn.init.constant_(body[0].weight, 0.1)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body[0].weight.mul_(2),
        lambda body: body[0].weight.data.mul_(2),
        lambda body: setattr(body[0].weight, "data", body[0].weight * 2),
        lambda body: body[1].running_mean.add_(1),
        lambda body: body[0].requires_grad_(True),
        lambda body: setattr(body[0], "stride", (2, 2)) or setattr(body[0], "padding", (0, 0)),
        lambda body: body.append(nn.Tanh()),
        replace_layer,
    ],
    ids=["in place", "through data", "new data", "a buffer", "unfrozen", "settings", "one more layer", "replaced"],
)
def test_a_change_of_the_frozen_layers_within_a_fit_counts(change):
    def add(learn):
        learn.callbacks.append(At(learn, change))

    learners, _ = both(before=add)
    check_same(learners)


def test_only_the_changed_batches_are_computed_again():
    class First(Callback):
        def on_batch_begin(self, last_input, train, num_batch, epoch):
            return {"last_input": last_input * 0.5} if train and (epoch, num_batch) == (1, 2) else None

    learners, samples = both(callbacks=lambda: [First()])
    check_same(learners)
    assert samples[0] == N + N_TRIED + 8


def test_features_above_the_limit_are_not_kept(monkeypatch):
    monkeypatch.setattr(features, "MAX_BYTES", 100)
    learners, samples = both()
    check_same(learners, exactly=True)
    assert samples[0] >= samples[1]


def test_a_resumed_run_has_the_weights_of_an_undisturbed_one(tmp_path):
    class Stops(Callback):
        stop = False

        def on_epoch_begin(self, epoch):
            if epoch == 2 and Stops.stop:
                raise KeyboardInterrupt

    undisturbed, stopped, resumed = (make_learner(path=tmp_path, callbacks=[Stops()]) for _ in range(3))
    torch.manual_seed(1)
    undisturbed.fit(4, 1e-2)
    torch.manual_seed(1)
    Stops.stop = True
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(4, 1e-2, checkpoint="run")
    Stops.stop = False
    resumed.fit(4, 1e-2, checkpoint="run")
    assert torch.equal(weights(undisturbed), weights(resumed))
    assert resumed.recorder.losses == undisturbed.recorder.losses


def test_lr_find_uses_the_features_and_leaves_no_trace():
    ours, plain = make_learner(), make_learner(precompute=False)
    found = []
    for learn in (ours, plain):
        before = copy.deepcopy(learn.model.state_dict())
        SAMPLES.clear()
        torch.manual_seed(1)
        found.append((learn.lr_find(num_it=40), sum(SAMPLES)))
        assert all(torch.equal(value, before[name]) for name, value in learn.model.state_dict().items())
        assert learn.features is None
    (result, n_ours), (expected, n_plain) = found
    torch.testing.assert_close(result.losses, expected.losses, rtol=1e-5, atol=1e-6)
    assert n_ours < N + 40
    assert n_plain >= 40 * 8


def test_a_line_of_the_table_says_so(capsys):
    make_learner(silent=False).fit(2, 1e-2)
    assert "The outputs of the frozen layers are computed once for 40 samples" in capsys.readouterr().out
    make_learner(silent=False, precompute=False).fit(2, 1e-2)
    assert "computed once" not in capsys.readouterr().out
