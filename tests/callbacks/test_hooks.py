"""Hooks store values and are removed; statistics of the layers."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from conftest import FailsAt, toy_learner
from torch import nn

from minifast import (
    ActivationStats,
    Hook,
    HookCallback,
    Hooks,
    MinifastError,
    hook_output,
    hook_outputs,
    model_sizes,
    model_summary,
    num_features_model,
    simple_cnn,
)


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def test_outputs_are_stored_detached_or_not():
    layer = nn.Linear(3, 2)
    x = torch.ones(4, 3)
    with hook_output(layer) as plain, hook_output(layer, detach=False) as live:
        y = layer(x)
    assert torch.equal(plain.stored, y)
    assert not plain.stored.requires_grad
    assert live.stored is y
    layer(2 * x)
    assert torch.equal(plain.stored, y)  # the hook is gone
    assert plain.removed
    assert hooks_of(layer) == 0


def test_a_hook_is_removed_when_the_block_fails():
    layer = nn.Linear(3, 2)
    with pytest.raises(RuntimeError), hook_output(layer), hook_output(layer, grad=True):
        layer(torch.ones(4, 5))
    assert hooks_of(layer) == 0


def test_hook_func_gets_module_input_and_output():
    layer = nn.Linear(3, 2)
    with Hook(layer, lambda module, input, output: (module, input[0].shape, output.shape)) as hook:
        layer(torch.ones(4, 3))
    assert hook.stored == (layer, (4, 3), (4, 2))


@pytest.mark.parametrize("make", [lambda: simple_cnn((3, 4, 2)), lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh())])
def test_gradients_are_those_of_torchs_own_hooks_where_those_work(make):
    torch.manual_seed(0)
    model = make()
    x = torch.randn(2, 3, 8, 8) if isinstance(model[0], nn.Conv2d) else torch.randn(2, 5)
    x.requires_grad_()
    with Hooks(model, lambda module, of_input, of_output: (of_input, of_output), is_forward=False) as hooks:
        model(x).pow(2).sum().backward()
    x.grad = None  # or the second gradient would be added into what the hook keeps
    wanted = {}
    for module in model:
        if isinstance(module, nn.ReLU):
            module.inplace = False  # which torch's own hooks do not allow
        keep = lambda module, of_input, of_output: wanted.update({module: (of_input, of_output)})  # noqa: E731
        module.register_full_backward_hook(keep)
    model(x).pow(2).sum().backward()
    for module, hook in zip(model, hooks, strict=True):
        for got, expected in zip(hook.stored, wanted[module], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_hook_outputs_with_grad_keeps_lists_of_gradients():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with hook_outputs(model, grad=True) as hooks:
        model(torch.ones(4, 3)).sum().backward()
    assert len(hooks) == 2
    assert torch.equal(hooks[1].stored[0], torch.ones(4, 2))
    assert [type(one) for one in hooks.stored] == [list, list]


def test_a_module_that_is_called_twice_keeps_its_last_call():
    layer = nn.Linear(2, 2)
    with hook_output(layer) as hook:
        y = layer(layer(torch.ones(1, 2)))
    assert torch.equal(hook.stored, y)


# --- callbacks


def test_stats_are_mean_and_deviation_of_each_layer_in_each_training_batch():
    seen = []
    learn = toy_learner(callback_fns=ActivationStats)
    handle = learn.model[1].register_forward_hook(lambda module, _, output: seen.append((module.training, output)))
    learn.fit(2)
    handle.remove()
    stats = learn.activation_stats.stats
    trained = [output.detach() for training, output in seen if training]
    assert stats.shape == (2, 2, 6)
    assert len(trained) == 6
    assert torch.allclose(stats[0, 0], torch.stack([one.mean() for one in trained]))
    assert torch.allclose(stats[1, 0], torch.stack([one.std(correction=0) for one in trained]))
    assert learn.activation_stats.names == ["1 Linear", "3 Linear"]


def test_hooks_are_removed_when_a_fit_fails():
    learn = toy_learner(callback_fns=[ActivationStats])
    with pytest.raises(OSError, match="gone"):
        learn.fit(1, callbacks=[FailsAt(1)])
    assert hooks_of(learn.model) == 0
    assert learn.activation_stats.stats.shape == (2, 2, 1)


def test_hooks_stay_where_that_is_asked_for():
    learn = toy_learner()
    stats = ActivationStats(learn, do_remove=False)
    learn.fit(1, callbacks=[stats])
    assert hooks_of(learn.model) == 2
    learn.fit(1, callbacks=[stats])
    assert hooks_of(learn.model) == 2  # not twice
    stats.remove()
    assert hooks_of(learn.model) == 0


def test_the_finder_leaves_the_statistics_alone():
    learn = toy_learner(callbacks=[stats := ActivationStats()])
    learn.fit(1)
    learn.lr_find(num_it=5)
    assert stats.stats.shape == (2, 2, 3)
    assert hooks_of(learn.model) == 0


def test_statistics_survive_an_end_and_a_resume(tmp_path):
    whole = ActivationStats()
    toy_learner(path=tmp_path / "a").fit(2, callbacks=[whole], checkpoint="run", every=1)
    with pytest.raises(OSError, match="gone"):
        toy_learner(path=tmp_path / "b").fit(2, callbacks=[ActivationStats(), FailsAt(4)], checkpoint="run", every=1)
    rest = ActivationStats()
    toy_learner(path=tmp_path / "b").fit(2, callbacks=[rest, FailsAt(None)], checkpoint="run", every=1)
    assert torch.equal(rest.stats, whole.stats)


def test_training_with_statistics_is_training_without():
    models = []
    for callbacks in ([], [ActivationStats()]):
        learn = toy_learner()
        learn.fit(2, callbacks=callbacks)
        models.append(learn.model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_layer_that_does_not_run_has_no_numbers():
    learn = toy_learner()
    learn.model.spare = nn.Linear(2, 2)
    spare = learn.model.spare
    learn.model.forward = lambda x: learn.model[3](learn.model[2](learn.model[1](x)))
    stats = ActivationStats(modules=[spare, learn.model[1]])
    learn.fit(1, callbacks=[stats])
    assert stats.stats[:, 0].isnan().all()
    assert stats.stats[:, 1].isfinite().all()


def test_callback_and_model_go_with_the_last_reference():
    learn = toy_learner()
    learn.fit(1, callbacks=[ActivationStats(modules=[learn.model[1]])])
    model, stats = weakref.ref(learn.model), weakref.ref(learn.activation_stats)
    gc.disable()
    try:
        del learn
        assert model() is None
        assert stats() is None
    finally:
        gc.enable()


def test_the_plot_has_a_line_per_layer():
    learn = toy_learner(callback_fns=ActivationStats)
    learn.fit(2)
    figure = learn.activation_stats.plot(return_fig=True)
    assert [len(ax.lines) for ax in figure.axes] == [2, 2]
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == ["mean of the activations", "standard deviation of the activations"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["1 Linear", "3 Linear"]
    with pytest.raises(MinifastError, match="no batch was trained with ActivationStats"):
        ActivationStats(learn).plot()


def test_a_hook_callback_of_your_own():
    class Shapes(HookCallback):
        def hook(self, module, input, output):
            return tuple(output.shape)

    learn = toy_learner(callback_fns=Shapes)
    learn.fit(1)
    assert learn.shapes.hooks.stored == [(20, 8), (20, 2)]
    with pytest.raises(NotImplementedError, match="HookCallback has no method hook"):
        learn.fit(1, callbacks=[HookCallback()])


# --- sizes


def test_sizes_are_those_of_the_children_and_the_model_stays_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Flatten()).train()
    model[1].eval()
    assert model_sizes(model, (16, 12)) == [(1, 8, 8, 6), (1, 8, 8, 6), (1, 384)]
    assert [module.training for module in model] == [True, False, True]
    assert hooks_of(model) == 0
    assert model[1].num_batches_tracked == 0
    with pytest.raises(ValueError, match="Linear has no convolution"):
        model_sizes(nn.Linear(2, 2))


def test_features_of_a_body():
    assert num_features_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())) == 8
    assert num_features_model(nn.Sequential(nn.Conv2d(3, 8, 100), nn.Conv2d(8, 5, 1))) == 5  # 64 is too small for it


def test_model_summary_is_the_learners():
    learn = toy_learner()
    assert model_summary(learn) == learn.summary()
    assert hooks_of(learn.model) == 0
