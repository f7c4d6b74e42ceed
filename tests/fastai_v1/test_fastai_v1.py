"""Callbacks as users wrote them for fastai v1 run with only the import line changed.

Each test's code is a module of its own that begins with ``from minifast import *`` in place of ``from fastai.basics
import *``; the rest stands as it would have stood there.
"""

from __future__ import annotations

import textwrap

import pytest
import torch
from conftest import toy_data

from minifast import NonFiniteLossError, simple_ann

IMPORTS = """
from functools import partial
import torch
from torch import nn
from torch.nn import functional as F
from minifast import *
"""


def run(code: str, n: int = 60, bs: int = 20, **names) -> dict:
    """Run code as a user's script, with ``data``, ``model`` and the given names in it; return what it defined."""
    torch.manual_seed(0)
    namespace = {"data": toy_data(n, bs), "model": simple_ann(10, 2, 8), **names}
    exec(compile(IMPORTS + textwrap.dedent(code), "a user's script", "exec"), namespace)
    return namespace


def test_a_learner_callback_with_kwargs_everywhere() -> None:
    told = run("""
        class Logger(LearnerCallback):
            _order = -5
            def __init__(self, learn, prefix='log'):
                super().__init__(learn)
                self.prefix, self.lines = prefix, []
            def on_train_begin(self, n_epochs, pbar, metrics_names, **kwargs):
                self.lines.append(f'{self.prefix} {n_epochs} {metrics_names}')
            def on_epoch_begin(self, **kwargs): self.lines.append(f"epoch {kwargs['epoch']}")
            def on_batch_begin(self, last_input, last_target, train, **kwargs):
                if train: self.lines.append(f"in {tuple(last_input.shape)} {kwargs['iteration']}")
            def on_loss_begin(self, last_output, **kwargs): self.out = last_output
            def on_backward_begin(self, smooth_loss, last_loss, **kwargs):
                assert not torch.isnan(smooth_loss) and last_loss.requires_grad
            def on_backward_end(self, **kwargs):
                self.norm = sum(p.grad.norm() for p in self.learn.model.parameters())
            def on_step_end(self, **kwargs): self.lr = self.opt.lr          # the learner's, through __getattr__
            def on_batch_end(self, last_loss, iteration, num_batch, **kwargs): self.loss = last_loss.item()
            def on_epoch_end(self, epoch, smooth_loss, last_metrics, **kwargs):
                self.lines.append(f'{epoch} {len(last_metrics)} {smooth_loss.item() > 0}')
            def on_train_end(self, exception, **kwargs): self.lines.append(f'end {exception}')

        learn = Learner(data, model, metrics=[accuracy], callback_fns=[partial(Logger, prefix='mine')], silent=True)
        learn.fit(2, 1e-2)
        lines = learn.logger.lines
    """)
    batches = [[f"in (20, 10) {i}" for i in part] for part in ((0, 1, 2), (3, 4, 5))]
    assert told["lines"] == [
        "mine 2 ['accuracy']", "epoch 0", *batches[0], "0 2 True", "epoch 1", *batches[1], "1 2 True", "end False",
    ]  # fmt: skip
    assert told["learn"].logger.lr == 1e-2


def test_last_metrics_of_the_epoch_before_are_in_the_kwargs_of_the_next() -> None:
    told = run("""
        seen = []
        class Peeks(Callback):
            def on_epoch_begin(self, **kwargs): seen.append(len(kwargs.get('last_metrics', [])))
            def on_batch_end(self, **kwargs):
                if kwargs['train'] and 'last_metrics' in kwargs: self.best = min(kwargs['last_metrics'])
        learn = Learner(data, model, metrics=[accuracy, error_rate], callbacks=[Peeks()], silent=True)
        learn.fit(3)
    """)
    assert told["seen"] == [0, 3, 3]


def test_gradient_clipping() -> None:
    told = run("""
        norms = []
        class GradientClipping(LearnerCallback):
            def __init__(self, learn, clip=0.):
                super().__init__(learn)
                self.clip = clip
            def on_backward_end(self, **kwargs):
                if self.clip: nn.utils.clip_grad_norm_(self.learn.model.parameters(), self.clip)
                norms.append(torch.cat([p.grad.flatten() for p in self.learn.model.parameters()]).norm().item())
        learn = Learner(data, model, silent=True)
        learn.callback_fns.append(partial(GradientClipping, clip=0.01))
        learn.fit(1)
    """)
    assert told["norms"] == pytest.approx([0.01] * 3, rel=1e-3)


def test_gradient_accumulation() -> None:
    code = """
        class AccumulateScheduler(LearnerCallback):
            _order = -40
            def __init__(self, learn, n_step=1, drop_last=False):
                super().__init__(learn)
                self.n_step, self.drop_last = n_step, drop_last
            def on_epoch_begin(self, **kwargs): self.acc_samples, self.acc_batches = 0., 0.
            def on_batch_begin(self, last_input, last_target, train, **kwargs):
                if train:
                    self.acc_samples += last_input.shape[0]
                    self.acc_batches += 1
            def on_backward_end(self, **kwargs):
                if (self.acc_batches % self.n_step) == 0:
                    for p in (self.learn.model.parameters()):
                        if p.requires_grad: p.grad.div_(self.acc_samples)
                    self.acc_samples = 0
                else: return {'skip_step': True, 'skip_zero': True}
            def on_epoch_end(self, **kwargs):
                if not self.drop_last and self.acc_samples > 0:
                    for p in (self.learn.model.parameters()):
                        if p.requires_grad: p.grad.div_(self.acc_samples)
                    self.learn.opt.step()
                    self.learn.opt.zero_grad()
        learn = Learner(data, model, opt_func=torch.optim.SGD, loss_func=nn.CrossEntropyLoss(reduction='sum'),
                        callback_fns=[partial(AccumulateScheduler, n_step=STEPS)], silent=True)
        learn.fit(1, 0.1)
        weight = learn.model[1].weight.detach()
    """
    # four batches of ten, a step every other, are two batches of twenty; a tail of one batch is stepped too
    for n, few, many in ((40, 10, 20), (30, 10, 20)):
        accumulated = run(code, n=n, bs=few, STEPS=2)["weight"]
        plain = run(code, n=n, bs=many, STEPS=1)["weight"]
        assert torch.allclose(accumulated, plain, atol=1e-6)


TERMINATE_ON_NAN = """
    class TerminateOnNaN(Callback):
        def __init__(self): self.stop = False
        def on_batch_end(self, last_loss, epoch, num_batch, **kwargs):
            if self.stop: return {'stop_epoch': True, 'stop_training': True}
            if torch.isnan(last_loss):
                self.where = (epoch, num_batch)
                return {'stop_epoch': True, 'stop_training': True, 'skip_validate': True}
"""


def test_terminate_on_nan_of_a_loss_that_a_callback_spoilt() -> None:
    told = run(
        TERMINATE_ON_NAN
        + """
    class Spoils(Callback):
        def on_backward_begin(self, last_loss, iteration, **kwargs):
            if iteration == 4: return {'last_loss': last_loss * float('nan')}
    stop = TerminateOnNaN()
    learn = Learner(data, model, callbacks=[Spoils(), stop], silent=True)
    learn.fit(3)
    """
    )
    recorder = told["learn"].recorder
    assert told["stop"].where == (1, 1)
    assert (len(recorder.lrs), recorder.nb_batches, recorder.val_losses[1]) == (5, [3, 2], None)


def test_terminate_on_nan_of_a_loss_that_is_nan_meets_minifasts_own_error() -> None:
    """The one difference: a fit whose own loss is NaN ends with an error that says where, before the step."""
    with pytest.raises(NonFiniteLossError, match="epoch 0, batch 0"):
        run(
            TERMINATE_ON_NAN
            + """
    learn = Learner(data, model, loss_func=lambda o, t: o.sum() * float('nan'), callbacks=[TerminateOnNaN()],
                    silent=True)
    learn.fit(3)
    """
        )


def test_stop_after_n_batches() -> None:
    told = run("""
        class StopAfterNBatches(Callback):
            def __init__(self, n_batches=2):
                self.stop, self.n_batches = False, n_batches-1
            def on_batch_end(self, iteration, **kwargs):
                if iteration == self.n_batches:
                    return {'stop_epoch': True, 'stop_training': True, 'skip_validate': True}
        learn = Learner(data, model, callbacks=[StopAfterNBatches(n_batches=2)], silent=True)
        learn.fit(5)
    """)
    recorder = told["learn"].recorder
    assert (len(recorder.losses), recorder.val_losses) == (2, [None])


def test_flags_returned_from_the_beginning_of_a_batch() -> None:
    told = run("""
        steps = []
        class EveryOther(LearnerCallback):
            def on_batch_begin(self, iteration, train, **kwargs):
                if train and iteration % 2: return {'skip_bwd': True, 'skip_step': True}
            def on_step_end(self, iteration, skip_step, **kwargs): steps.append((iteration, skip_step))
        learn = Learner(data, model, callback_fns=EveryOther, silent=True)
        learn.fit(1)
    """)
    assert told["steps"] == [(0, False), (1, True), (2, False)]
    (state, *_) = told["learn"].opt.opt.state.values()
    assert int(state["step"]) == 2


def test_a_metric_of_ones_own_over_the_whole_epoch() -> None:
    told = run("""
        class Precision(Callback):
            name = 'precision'
            def on_train_begin(self, **kwargs): self.began = True
            def on_epoch_begin(self, **kwargs):
                self.correct, self.total = 0, 0
            def on_batch_end(self, last_output, last_target, **kwargs):
                preds = last_output.argmax(1)
                self.correct += ((preds==1) * (last_target==1)).float().sum()
                self.total += (preds==1).float().sum()
            def on_epoch_end(self, last_metrics, **kwargs):
                return add_metrics(last_metrics, self.correct/self.total)
        learn = Learner(data, model, metrics=[accuracy, Precision()], silent=True)
        learn.fit(5, 1e-2)
        preds, targs = learn.get_preds()
        picked = targs[preds.argmax(1) == 1].float().mean().item()
    """)
    recorder = told["learn"].recorder
    assert recorder.names == ["epoch", "train_loss", "valid_loss", "accuracy", "precision", "time"]
    assert recorder.metrics[-1][1] == pytest.approx(told["picked"])


def test_metrics_of_the_training_set_as_a_callback() -> None:
    told = run("""
        class LossMetrics(LearnerCallback):
            _order = -20                                 # needs to run before the recorder
            def on_train_begin(self, **kwargs):
                self.names = ['train_acc', 'n']
                self.learn.recorder.add_metric_names(self.names)
            def on_epoch_begin(self, **kwargs): self.right, self.n = 0., 0
            def on_batch_end(self, last_output, last_target, train, **kwargs):
                if train:
                    self.right += (last_output.argmax(1) == last_target).float().sum().cpu()
                    self.n += len(last_target)
            def on_epoch_end(self, last_metrics, **kwargs):
                if not self.n: return
                return {'last_metrics': last_metrics + [self.right / self.n, self.n]}
        learn = Learner(data, model, metrics=accuracy, callback_fns=[LossMetrics], silent=True)
        learn.fit(2)
    """)
    recorder = told["learn"].recorder
    assert recorder.names[3:-1] == ["accuracy", "train_acc", "n"]
    assert [len(values) for values in recorder.metrics] == [3, 3]
    assert recorder.metrics[0][2] == 60
    assert type(recorder.metrics[0][1]) is float


def test_mixup_changes_inputs_targets_and_the_loss_function() -> None:
    told = run("""
        class MixUpLoss(nn.Module):
            def __init__(self, crit):
                super().__init__()
                self.crit = crit
            def forward(self, output, target):
                if len(target.size()) == 2:
                    d = self.crit(output, target[:, 0].long()) * target[:, 2]
                    d = d + self.crit(output, target[:, 1].long()) * (1 - target[:, 2])
                    return d.mean()
                return self.crit(output, target).mean()
        class MixUp(LearnerCallback):
            def on_train_begin(self, **kwargs):
                self.old = self.learn.loss_func
                self.learn.loss_func = MixUpLoss(nn.CrossEntropyLoss(reduction='none'))
            def on_batch_begin(self, last_input, last_target, train, **kwargs):
                if not train: return
                lam = torch.full((len(last_target),), 0.7)
                order = torch.randperm(len(last_target))
                x = last_input * 0.7 + last_input[order] * 0.3
                y = torch.stack([last_target.float(), last_target[order].float(), lam], 1)
                return {'last_input': x, 'last_target': y}
            def on_train_end(self, **kwargs): self.learn.loss_func = self.old
        learn = Learner(data, model, metrics=accuracy, callback_fns=[MixUp], silent=True)
        before = learn.loss_func
        learn.fit(3, 1e-2)
        put_back = learn.loss_func is before
    """)
    assert told["put_back"]
    assert told["learn"].recorder.losses[-1] < told["learn"].recorder.losses[0]


def test_outputs_and_losses_are_changed_on_the_way() -> None:
    told = run("""
        extra = []
        class Regulariser(LearnerCallback):
            def on_loss_begin(self, last_output, **kwargs):
                self.raw = last_output[1]
                return {'last_output': last_output[0]}
            def on_backward_begin(self, last_loss, **kwargs):
                extra.append(self.raw.pow(2).mean().item())
                return {'last_loss': last_loss + 10 * self.raw.pow(2).mean()}
        class Two(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner
            def forward(self, x):
                hidden = self.inner[:3](x)
                return self.inner[3](hidden), hidden
        learn = Learner(data, Two(model), metrics=[accuracy], callback_fns=[Regulariser], silent=True)
        learn.fit(5, 3e-2)
    """)
    assert len(told["extra"]) == 15
    assert told["extra"][-1] < told["extra"][0]


def test_a_scheduler_in_the_manner_of_general_scheduler() -> None:
    told = run("""
        class WarmUp(LearnerCallback):
            def on_train_begin(self, n_epochs, **kwargs):
                n = n_epochs * len(self.learn.data.train_dl)
                self.scheds = [Scheduler((1e-4, 1e-2), n//2, annealing_linear),
                               Scheduler((1e-2, 1e-4), n-n//2, annealing_cos)]
                self.idx = 0
                self.opt.lr = self.scheds[0].start
            def on_batch_end(self, train, **kwargs):
                if train:
                    if self.idx >= len(self.scheds): return {'stop_training': True, 'stop_epoch': True}
                    self.opt.lr = self.scheds[self.idx].step()
                    if self.scheds[self.idx].is_done: self.idx += 1
        learn = Learner(data, model, callback_fns=[WarmUp], silent=True)
        learn.fit(2)
    """)
    lrs = told["learn"].recorder.lrs
    assert lrs == pytest.approx([1e-4, 3.4e-3, 6.7e-3, 1e-2, 0.007525, 0.002575])


def test_early_stopping_on_a_tracked_value() -> None:
    told = run("""
        class EarlyStopping(LearnerCallback):
            def __init__(self, learn, monitor='valid_loss', min_delta=0., patience=1):
                super().__init__(learn)
                self.monitor, self.min_delta, self.patience = monitor, min_delta, patience
            def on_train_begin(self, **kwargs): self.wait, self.best = 0, float('inf')
            def get_monitor_value(self):
                recorder = self.learn.recorder
                values = {'train_loss': recorder.losses[-1:], 'valid_loss': recorder.val_losses[-1:]}
                for i, name in enumerate(recorder.names[3:]):
                    if recorder.metrics: values[name] = recorder.metrics[-1][i:i+1]
                return values[self.monitor][0]
            def on_epoch_end(self, epoch, **kwargs):
                current = self.get_monitor_value()
                if current < self.best - self.min_delta: self.best, self.wait = current, 0
                else:
                    self.wait += 1
                    if self.wait > self.patience:
                        self.stopped = epoch
                        return {'stop_training': True}
        stopping = partial(EarlyStopping, monitor='valid_loss', min_delta=10, patience=1)
        learn = Learner(data, model, metrics=[accuracy], callback_fns=[stopping], silent=True)
        learn.fit(9, 1e-2)
    """)
    assert told["learn"].early_stopping.stopped == 2
    assert len(told["learn"].recorder.val_losses) == 3


def test_saving_the_best_and_loading_it_at_the_end(tmp_path) -> None:
    told = run(
        """
        class SaveModel(LearnerCallback):
            def __init__(self, learn, name='bestmodel'):
                super().__init__(learn)
                self.name, self.best = name, float('inf')
            def on_epoch_end(self, epoch, last_metrics, **kwargs):
                if last_metrics[0] < self.best:
                    self.best = last_metrics[0]
                    self.learn.save(f'{self.name}')
            def on_train_end(self, **kwargs):
                if (self.learn.path/f'{self.learn.model_dir}/{self.name}.pth').is_file():
                    self.learn.load(f'{self.name}', purge=False)
        learn = Learner(data, model, metrics=[accuracy], path=path, callback_fns=[SaveModel], silent=True)
        learn.fit_one_cycle(3, 1e-1)
        loss, acc = learn.validate()
    """,
        path=tmp_path,
    )
    assert told["loss"] == pytest.approx(min(told["learn"].recorder.val_losses))


def test_starting_at_an_epoch_as_track_epoch_does() -> None:
    told = run("""
        jumps = []
        class TrackEpoch(LearnerCallback):
            _order = -20
            def on_train_begin(self, **kwargs): return {'epoch': 2}
        class Jumps(Callback):
            def jump_to_epoch(self, epoch): jumps.append(epoch)
        learn = Learner(data, model, callback_fns=[TrackEpoch], callbacks=[Jumps()], silent=True)
        learn.fit_one_cycle(4, 1e-2)
        rest = learn.recorder.lrs
        learn.callback_fns = []
        learn.fit_one_cycle(4, 1e-2)
        whole = learn.recorder.lrs
    """)
    assert told["jumps"] == [2]
    assert told["rest"] == told["whole"][6:]


def test_freezing_batchnorm_at_the_beginning_of_each_epoch() -> None:
    told = run("""
        net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        class BnFreeze(LearnerCallback):
            def on_epoch_begin(self, **kwargs):
                for m in self.learn.model.modules():
                    if isinstance(m, nn.BatchNorm1d): m.eval()
        learn = Learner(data, net, callback_fns=[BnFreeze], silent=True)
        learn.fit(2)
    """)
    assert int(told["net"][1].num_batches_tracked) == 0


def test_hooks_put_on_and_taken_off_around_a_fit() -> None:
    told = run("""
        class Stats(LearnerCallback):
            def on_train_begin(self, **kwargs):
                self.means = []
                self.hook = self.learn.model[1].register_forward_hook(self.hook_fn)
            def hook_fn(self, m, i, o): self.means.append(o.mean().item())
            def on_train_end(self, **kwargs): self.hook.remove()
        learn = Learner(data, model, callback_fns=[Stats], silent=True)
        learn.fit(1)
        learn.validate()
    """)
    assert len(told["learn"].stats.means) == 6


def test_a_callback_used_in_a_loop_over_fits_keeps_its_own_count() -> None:
    told = run("""
        class Counts(Callback):
            def __init__(self): self.fits, self.batches = 0, 0
            def on_train_begin(self, **kwargs): self.fits += 1
            def on_batch_end(self, train, **kwargs): self.batches += train
        counts = Counts()
        learn = Learner(data, model, callbacks=[counts], silent=True)
        for lr in (1e-2, 1e-3): learn.fit(1, lr)
        learn.fit(1, 1e-3, callbacks=[counts])
    """)
    assert (told["counts"].fits, told["counts"].batches) == (4, 12)


def test_the_table_is_written_by_a_callback_through_the_bar(capsys) -> None:
    run("""
        class Says(LearnerCallback):
            def on_train_begin(self, pbar, **kwargs): self.pbar = pbar
            def on_epoch_end(self, epoch, **kwargs): self.pbar.write(f'that was epoch {epoch}')
        learn = Learner(data, model, metrics=[accuracy], callback_fns=[Says])
        learn.fit(2)
    """)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "that was epoch 0"
    assert lines[4] == "that was epoch 1"


def test_the_pages_calls_and_attributes() -> None:
    told = run("""
        learn = Learner(data, model, metrics=[accuracy], silent=True)
        learn.lr_find(start_lr=1e-6, end_lr=1, num_it=20, stop_div=True)
        fig = learn.recorder.plot(skip_start=2, skip_end=2, return_fig=True)
        learn.fit_one_cycle(1, max_lr=slice(1e-2), moms=(0.95, 0.85), div_factor=25., pct_start=0.3, wd=1e-2)
        learn.fit(1, lr=slice(1e-3, 1e-2), wd=1e-2, callbacks=[])
        names, lrs, moms = learn.recorder.names, learn.recorder.lrs, learn.recorder.moms
        learn.recorder.plot_lr(show_moms=True); learn.recorder.plot_losses(); learn.recorder.plot_metrics()
        loss, acc = learn.validate(learn.data.valid_dl)
        preds, y, losses = learn.get_preds(ds_type=DatasetType.Valid, with_loss=True)
        lr, mom, wd = learn.opt.lr, learn.opt.mom, learn.opt.wd
        learn.opt.lr = 1e-4; learn.opt.mom = 0.8; learn.opt.wd = 0.1
        inner = learn.opt.opt.param_groups
        finder = LRFinder(learn, start_lr=1e-7, end_lr=10, num_it=100, stop_div=True)
        cycle = OneCycleScheduler(learn, 1e-2, moms=(0.95, 0.85), div_factor=25., pct_start=0.3)
    """)
    assert told["names"] == ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
    assert told["lr"] == 1e-2
    assert told["losses"].shape == (60,)
