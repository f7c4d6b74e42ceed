"""Frozen layers with running statistics, and the warning about batch and running statistics."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from conftest import slow, toy_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minifast import Callback, DataBunch, EMACallback, Learner, MixUpCallback
from minifast.training.batchnorm import compare_statistics

NORMS = {
    "BatchNorm": nn.BatchNorm1d,
    "BatchNorm without parameters": lambda n: nn.BatchNorm1d(n, affine=False),
    "BatchNorm without statistics": lambda n: nn.BatchNorm1d(n, track_running_stats=False),
    "BatchNorm with a cumulative average": lambda n: nn.BatchNorm1d(n, momentum=None),
    "GroupNorm": lambda n: nn.GroupNorm(2, n),
    "LayerNorm": nn.LayerNorm,
    "none": lambda n: nn.Identity(),
    "spectral_norm": lambda n: nn.utils.parametrizations.spectral_norm(nn.Linear(n, n)),
    "old spectral_norm": lambda n: nn.utils.spectral_norm(nn.Linear(n, n)),
}


def block(norm: str, n_in: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 6), NORMS[norm](6), nn.ReLU(), nn.Dropout(0.2))


def make_learner(norms=("BatchNorm", "BatchNorm"), seed=0, **options) -> Learner:
    torch.manual_seed(seed)
    blocks = [block(norm, 6 if i else 10) for i, norm in enumerate(norms)]
    model = nn.Sequential(*blocks, nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)))
    return Learner(toy_data(), model, **{"silent": True} | options).split(list(model)[1:])


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("n_examples", [8, *slow(25)])
def test_frozen_groups_stay_bitwise_identical_in_a_fit(n_examples):
    @settings(deadline=None, max_examples=n_examples)
    @given(
        norms=st.lists(st.sampled_from(list(NORMS)), min_size=1, max_size=3),
        n=st.integers(0, 3),
        method=st.sampled_from(["fit", "fit_one_cycle", "lr_find and fit"]),
        wd=st.sampled_from([0.0, 0.1]),
    )
    def check(norms, n, method, wd):
        n = min(n, len(norms))
        learn = make_learner(norms, wd=wd)
        learn.fit(1, 1e-2)
        learn.freeze_to(n)
        before = [state_of(group) for group in learn.layer_groups]
        if method.startswith("lr_find"):
            learn.lr_find(num_it=5)
        getattr(learn, method.split()[-1])(2, 1e-2)
        after = [state_of(group) for group in learn.layer_groups]
        assert [same(*pair) for pair in zip(before, after, strict=True)] == [True] * n + [False] * (len(norms) + 1 - n)

    check()


@pytest.mark.parametrize("norm", NORMS)
def test_layers_frozen_by_requires_grad_keep_their_statistics(norm):
    learn = make_learner([norm])
    frozen = learn.model[0].requires_grad_(False)
    before = state_of(frozen)
    learn.fit(1, 1e-2)
    assert same(before, state_of(frozen))
    assert learn.model[1][0].num_batches_tracked == 3


def test_a_norm_without_parameters_before_trained_layers_is_not_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(10, affine=False), nn.Linear(10, 6), nn.Linear(6, 2))
    learn = Learner(toy_data(), model, silent=True).split([model[2]])
    learn.fit(1, 1e-2)
    assert model[0].num_batches_tracked == 3
    learn.freeze()
    learn.fit(1, 1e-2)
    assert model[0].num_batches_tracked == 3


def test_a_frozen_part_needs_no_gradients():
    learn = make_learner(["BatchNorm", "spectral_norm"])
    learn.freeze()
    outputs = []
    learn.model[1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    learn.fit(1, 1e-2)
    assert outputs
    assert not any(output.requires_grad or output.grad_fn for output in outputs)


def test_train_bn_as_in_fastai_v1_trains_frozen_batch_norms():
    for train_bn, parameters_move in ((True, True), (False, False)):
        learn = make_learner(train_bn=train_bn)
        learn.freeze()
        before = state_of(learn.model[0])
        learn.fit(1, 1e-2)
        after = state_of(learn.model[0])
        assert torch.equal(before["0.weight"], after["0.weight"])
        assert torch.equal(before["1.weight"], after["1.weight"]) != parameters_move
        assert not torch.equal(before["1.running_mean"], after["1.running_mean"])


def test_groups_unfrozen_during_a_fit_train_their_statistics_at_once():
    class Gradual(Callback):
        def on_epoch_begin(self, epoch):
            learn.freeze_to(2 - epoch)

    learn = make_learner()
    learn.fit(3, 1e-2, callbacks=[Gradual()])
    counts = [learn.model[i][j].num_batches_tracked.item() for i, j in ((0, 1), (1, 1), (2, 0))]
    assert counts == [3, 6, 9]
    learn.freeze()
    learn.unfreeze()
    assert all(module.training == learn.model.training for module in learn.model.modules())


def test_validation_of_a_frozen_model_equals_its_training_features():
    learn = make_learner(["BatchNorm"])
    learn.fit(2, 1e-2)
    learn.freeze()
    learn.model[0][3].p = 0.0
    features = {}
    learn.model[0].register_forward_hook(
        lambda module, inputs, output: features.setdefault((module.training, inputs[0].sum().item()), output)
    )
    x, _ = next(iter(learn.data.train_dl))
    learn.data.valid_dl = [(x, torch.zeros(len(x), dtype=torch.long))]
    learn.data.train_dl = learn.data.valid_dl
    learn.fit(1, 1e-2)
    assert len(features) == 2
    assert torch.equal(*features.values())


# --- the warning


def shifted_data(shift: float = 30.0, n: int = 4) -> DataBunch:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 32, 10, generator=generator)
    batches = [(inputs + shift, (inputs[:, 0] > 0).long()) for inputs in x]
    return DataBunch(batches, batches, device="cpu", loss_func=nn.CrossEntropyLoss())


def shifted_learner(momentum: float = 0.01, **options) -> Learner:
    torch.manual_seed(0)
    layers = [nn.Linear(10, 6), nn.BatchNorm1d(6, momentum=momentum), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2)]
    return Learner(shifted_data(), nn.Sequential(*layers), **options)


LINE = "with the batch statistics of training and"


def test_a_fit_whose_running_statistics_lag_prints_one_line_with_the_cure(capsys):
    shifted_learner().fit(2, 0.1)
    lines = [line for line in capsys.readouterr().out.splitlines() if LINE in line]
    assert len(lines) == 1
    assert lines[0].endswith("Train for more steps, or give the BatchNorm layers a larger momentum.")


def test_the_cure_for_moving_statistics_of_frozen_layers(capsys):
    for train_bn, warns in ((True, True), (None, False)):
        learn = shifted_learner(train_bn=train_bn)
        learn.split([learn.model[4]]).freeze()
        learn.fit(2, 0.1)
        lines = [line for line in capsys.readouterr().out.splitlines() if LINE in line]
        assert len(lines) == warns
        assert all("Set learn.train_bn = None and freeze again" in line for line in lines)


@pytest.mark.parametrize("case", ["silent", "enough steps", "dropout only", "lr_find", "small batches"])
def test_no_line_without_a_reason(case, capsys):
    learn = shifted_learner(silent=case == "silent", momentum=0.3 if case == "enough steps" else 0.01)
    if case == "enough steps":
        learn.data = shifted_data(1.0)
    if case == "dropout only":
        learn.model[1] = nn.LayerNorm(6)
    if case == "small batches":
        batches = [(x[:7], y[:7]) for x, y in learn.data.train_dl]
        learn.data = DataBunch(batches, batches, device="cpu", loss_func=nn.CrossEntropyLoss())
    if case == "lr_find":
        learn.lr_find(num_it=8)
    else:
        learn.fit(*(15, 1e-2) if case == "enough steps" else (2, 0.1))
    assert LINE not in capsys.readouterr().out


@settings(deadline=None, max_examples=15)
@given(
    epochs=st.integers(1, 3),
    momentum=st.sampled_from([0.01, 0.3, None]),
    frozen=st.booleans(),
    train_bn=st.sampled_from([None, True, False]),
    average=st.booleans(),
)
def test_the_warning_changes_no_state(epochs, momentum, frozen, train_bn, average):
    results = []
    for silent in (True, False):
        random.seed(0)
        np.random.seed(0)
        learn = shifted_learner(momentum, silent=silent, train_bn=train_bn)
        if frozen:
            learn.split([learn.model[4]]).freeze()
        for _ in range(2):
            learn.fit(epochs, 0.1, callbacks=[EMACallback()] if average else None)
        flags = [module.training for module in learn.model.modules()]
        tracked = learn.model[1].track_running_stats
        numbers = (torch.rand(1).item(), random.random(), np.random.rand())
        results.append((state_of(learn.model), list(learn.recorder.losses), flags, tracked, numbers))
    assert same(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_the_line_is_about_a_training_batch(capsys):
    learn = shifted_learner()
    x, y = learn.data.train_dl.dl[-1] if hasattr(learn.data.train_dl, "dl") else list(learn.data.train_dl)[-1]
    learn.data.valid_dl = [(x[:1], y[:1])]  # too small to compare
    learn.fit(2, 0.1)
    batch, running = compare_statistics(learn, [learn.model[1]], x, y)
    assert f"is {batch:.3g} {LINE} {running:.3g} with" in capsys.readouterr().out


@pytest.mark.parametrize("mixup", [False, True])
def test_a_callback_that_changes_batches_does_not_change_the_comparison(mixup, capsys):
    learn = shifted_learner()
    learn.fit(2, 0.1, callbacks=[MixUpCallback(learn)] if mixup else None)
    assert LINE in capsys.readouterr().out


def test_a_loss_that_may_count_its_calls_is_not_called():
    class Loss:
        calls = 0

        def __call__(self, output, target):
            self.calls += 1
            return nn.functional.cross_entropy(output, target)

    loss = Loss()
    learn = shifted_learner(loss_func=loss)
    learn.fit(1, 0.1)
    assert loss.calls == 8


def test_a_module_as_loss_keeps_its_state():
    class Loss(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, output, target):
            self.calls += 1
            return super().forward(output, target)

    learn = shifted_learner(loss_func=Loss())
    learn.fit(1, 0.1)
    assert learn.loss_func.calls == 8


def test_losses_are_those_of_a_plain_computation():
    learn = shifted_learner(silent=True)
    learn.fit(1, 0.1)
    x, y = next(iter(learn.data.train_dl))
    batch, running = compare_statistics(learn, [learn.model[1]], x, y)
    linear, norm, relu, dropout, last = learn.model
    with torch.no_grad():
        z = linear(x)
        normalized = nn.functional.batch_norm(z, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        assert batch == pytest.approx(nn.functional.cross_entropy(last(relu(normalized)), y).item())
        assert running == pytest.approx(nn.functional.cross_entropy(learn.model.eval()(x), y).item())
    assert dropout.p == 0.5


def test_check_reports_running_statistics_that_differ():
    learn = shifted_learner(silent=True)
    assert not any("running statistics" in finding.what for finding in learn.check().findings)  # never trained
    learn.fit(2, 0.1)
    before = state_of(learn.model)
    findings = [finding for finding in learn.check().findings if "running statistics" in finding.what]
    assert len(findings) == 1
    assert findings[0].mild
    assert same(before, state_of(learn.model))
