"""lr_find restores all state; losses that are not finite; seeds; long runs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FailsAt, toy_data, toy_learner, write_images
from torch import nn
from torch.utils.data import DataLoader, Dataset

from minifast import (
    Callback,
    DataBunch,
    FileFormatError,
    Learner,
    LearnerCallback,
    NonFiniteLossError,
    TensorLoader,
    set_seed,
    simple_ann,
)
from minifast.training.non_finite import diagnose, first_output

NAN = float("nan")
PROCESS = Path("/proc/self")


def weights(learn: Learner) -> list[torch.Tensor]:
    return [value.clone() for value in learn.model.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- what a finder leaves in callbacks


class Busy(LearnerCallback):
    """Changes everything of its own in every batch, and freezes a layer."""

    def __init__(self, learn):
        super().__init__(learn)
        self.model = learn.model
        self.count, self.seen, self.nested = 0, [], {"a": {"b": [1]}}
        self.average = torch.zeros(3)
        self.lock = threading.Lock()
        self.generator = torch.Generator().manual_seed(5)

    def on_batch_end(self):
        self.count += 1
        self.seen.append(self.count)
        self.nested["a"]["b"].append(self.count)
        self.average += torch.rand(3, generator=self.generator)
        self.learn.model[0].requires_grad_(False)
        self.extra = "new"


def test_callbacks_are_as_before() -> None:
    learn = toy_learner()
    busy = Busy(learn)
    learn.callbacks = [busy]
    seen, model, lock, state = busy.seen, busy.model, busy.lock, busy.generator.get_state()
    learn.lr_find(num_it=5)
    assert (busy.count, busy.seen, busy.nested) == (0, [], {"a": {"b": [1]}})
    assert busy.seen is seen
    assert busy.model is model is learn.model
    assert busy.lock is lock
    assert torch.equal(busy.average, torch.zeros(3))
    assert torch.equal(busy.generator.get_state(), state)
    assert "extra" not in vars(busy)
    assert all(parameter.requires_grad for parameter in learn.model.parameters())


class Holds(Callback):
    """Holds parts of the learner, things of its own, and what another callback holds too."""

    def __init__(self, learn, both):
        self.learn = learn
        self.layer, self.loader, self.items = learn.model[1], learn.data.train_dl, learn.data.train_ds
        self.seen, self.alias = set(), None
        self.alias = self.seen
        self.average, self.both = torch.zeros(3), both
        self.handle = learn.model[1].register_forward_hook(lambda *_: self.calls.append(1))
        self.calls = []

    def on_batch_end(self, iteration):
        self.seen.add(iteration)
        self.average += 1
        self.both.append(iteration)


def test_what_callbacks_hold_is_the_same_thing_as_before() -> None:
    learn = toy_learner()
    both: list[int] = []
    callbacks = [Holds(learn, both), Holds(learn, both)]
    learn.callbacks = callbacks
    before = [dict(vars(callback)) for callback in callbacks]
    learn.lr_find(num_it=4)
    for callback, attributes in zip(callbacks, before, strict=True):
        assert vars(callback).keys() == attributes.keys()
        assert all(vars(callback)[name] is value for name, value in attributes.items())
        assert callback.layer is learn.model[1]
        assert callback.seen is callback.alias
        assert callback.seen == set()
        assert not callback.average.any()
        assert not both
        callback.handle.remove()
    assert not learn.model[1]._forward_hooks


def test_a_hook_of_a_run_that_met_nan_can_be_taken_off() -> None:
    class Hooks(Callback):
        def __init__(self, learn):
            self.layer = learn.model[0]

        def on_train_begin(self):
            self.handle = self.layer.register_forward_hook(lambda *_: None)

        def on_train_end(self):
            self.handle.remove()

    learn = spoilt(4)
    learn.callbacks = [Hooks(learn)]
    with pytest.raises(NonFiniteLossError):
        learn.fit(3)
    assert not learn.model[0]._forward_hooks


def test_lists_of_the_learner_are_as_before() -> None:
    class Appends(LearnerCallback):
        def on_train_begin(self):
            self.learn.callbacks.append(Callback())
            self.learn.metrics.clear()

    learn = toy_learner()
    learn.callbacks = callbacks = [Appends(learn)]
    metrics = list(learn.metrics)
    learn.lr_find(num_it=3)
    assert learn.callbacks is callbacks
    assert len(callbacks) == 1
    assert learn.metrics == metrics != []


def test_a_maker_of_callbacks_that_watch_is_not_called() -> None:
    class Opens(LearnerCallback):
        fit_only = True
        opened = 0

        def __init__(self, learn, file="x"):
            super().__init__(learn)
            Opens.opened += 1

    learn = toy_learner(callback_fns=[Opens, partial(Opens, file="y")])
    learn.lr_find(num_it=3)
    assert Opens.opened == 0
    learn.fit(1)
    assert Opens.opened == 2


class Moving(nn.Module):
    """Assigns its buffer anew, counts, and keeps what it saw last."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(10))
        self.calls, self.last = 0, None

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
            self.calls += 1
            self.last = x.detach()
        return x - self.mean


def test_buffers_that_are_assigned_and_plain_attributes_are_as_before() -> None:
    def trained(find):
        torch.manual_seed(0)
        loss = WithBuffer()
        model = nn.Sequential(Moving(), nn.Linear(10, 2))
        learn = Learner(toy_data(shuffle=True), model, loss_func=loss, silent=True)
        if find:
            buffer = model[0].mean
            learn.lr_find(num_it=5)
            assert model[0].mean is buffer
            assert (model[0].calls, model[0].last) == (0, None)
        learn.fit(2, 1e-2)
        return [*weights(learn), *loss.buffers()], learn.recorder.val_losses

    (alone, losses), (after, losses_after) = trained(find=False), trained(find=True)
    assert equal(alone, after)
    assert losses == losses_after


class WithBuffer(nn.CrossEntropyLoss):
    """A loss with a moving average in it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, output, target):
        loss = super().forward(output, target)
        self.scale = 0.9 * self.scale + 0.1 * loss.detach()
        return loss / self.scale


class Noisy(Dataset):
    """Items with noise from generators of their own."""

    def __init__(self):
        self.torch_generator = torch.Generator().manual_seed(1)
        self.numpy_generator = np.random.default_rng(1)
        self.python_generator = random.Random(1)

    def __len__(self):
        return 40

    def __getitem__(self, i):
        noise = self.numpy_generator.random() + self.python_generator.random()
        return torch.rand(10, generator=self.torch_generator) + noise, i % 2


class Shift:
    """A batch transform with a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(2)

    def __call__(self, batch):
        x, y = batch
        return x + torch.rand(1, generator=self.generator), y


def noisy_learner(path=None, memory=False) -> Learner:
    torch.manual_seed(0)
    x = torch.randn(40, 10)
    train = TensorLoader(x, (x.sum(1) > 0).long(), 8, seed=1, device="cpu") if memory else DataLoader(Noisy(), 8)
    data = DataBunch(train, None, device="cpu")
    data.train_dl.add_tfm(Shift())
    return Learner(data, simple_ann(10, 2), loss_func=nn.CrossEntropyLoss(), path=path, silent=True)


@pytest.mark.parametrize("memory", [False, True])
def test_generators_of_data_and_transforms_are_as_before(memory) -> None:
    alone, after = noisy_learner(memory=memory), noisy_learner(memory=memory)
    after.lr_find(num_it=7)
    for learn in (alone, after):
        learn.fit(2, 1e-2)
    assert alone.recorder.raw_losses == after.recorder.raw_losses


@pytest.mark.parametrize("memory", [False, True])
def test_generators_of_data_and_transforms_resume(tmp_path, memory) -> None:
    alone, again = noisy_learner(memory=memory), noisy_learner(tmp_path, memory)
    alone.fit(3, 1e-2)
    with pytest.raises(OSError, match="gone"):
        noisy_learner(tmp_path, memory).fit(3, 1e-2, callbacks=FailsAt(8), checkpoint="run", every=1)
    again.fit(3, 1e-2, callbacks=FailsAt(None), checkpoint="run", every=1)
    assert alone.recorder.raw_losses == again.recorder.raw_losses


class Wrapped(torch.optim.Optimizer):
    """An optimizer around another, which shares its groups, as Lookahead or SAM do."""

    def __init__(self, params, lr):
        self.base = torch.optim.SGD(params, lr, momentum=0.9)
        super().__init__(self.base.param_groups, {"lr": lr})
        self.param_groups = self.base.param_groups

    def step(self, closure=None):
        return self.base.step(closure)


def test_an_optimizer_around_another_is_as_before_and_takes_the_finders_rates() -> None:
    learn = toy_learner(opt_func=Wrapped)
    learn.fit(1, 1e-2)
    base = learn.opt.opt.base
    before = [state["momentum_buffer"].clone() for state in base.state.values()]
    used = []

    class Looks(Callback):
        def on_step_end(self):
            used.append(learn.opt.opt.base.param_groups[0]["lr"])

    learn.callbacks = [Looks()]
    learn.lr_find(num_it=10, stop_div=False)
    assert used == pytest.approx(list(np.geomspace(1e-7, 10, 10)))
    assert learn.opt.opt.base is base
    assert equal(before, [state["momentum_buffer"] for state in base.state.values()])


def test_an_interrupted_finder_says_that_all_is_put_back(capsys) -> None:
    class Interrupts(Callback):
        def on_batch_begin(self, iteration):
            if iteration == 4:
                raise KeyboardInterrupt

    learn = toy_learner(callbacks=[Interrupts()])
    learn.silent = False
    with pytest.raises(KeyboardInterrupt):
        learn.lr_find(num_it=10)
    assert "Stopped in the search for a learning rate; lr_find restores all state." in capsys.readouterr().out


def test_a_finder_over_data_that_end_stops() -> None:
    class Once:
        def __init__(self):
            self.batches = iter([(torch.randn(4, 10), torch.ones(4, dtype=torch.long))] * 3)

        def __len__(self):
            return 3

        def __iter__(self):
            return self.batches

    learn = Learner(DataBunch(Once(), None, device="cpu"), simple_ann(10, 2), loss_func=nn.CrossEntropyLoss())
    learn.silent = True
    with pytest.warns(UserWarning, match="batches is a list_iterator, whose position lr_find cannot restore"):
        result = learn.lr_find(num_it=10)
    assert result.stopped == "the data has no more batches"
    assert len(result.lrs) == 3


def test_metrics_with_a_state_are_as_before() -> None:
    class Epochs(Callback):
        def __init__(self):
            self.n = 0

        def on_epoch_begin(self):
            self.n += 1

        def on_epoch_end(self, last_metrics):
            return {"last_metrics": [*last_metrics, self.n]}

    metric = Epochs()
    learn = toy_learner(metrics=[metric])
    learn.lr_find(num_it=5)
    assert metric.n == 0


def test_the_learners_attributes_are_as_before() -> None:
    class Sets(LearnerCallback):
        def on_train_end(self):
            self.learn.loss_func = None
            self.learn.anything = 1

    learn = toy_learner(callback_fns=Sets)
    before = {name: value for name, value in vars(learn).items() if name != "recorder"}
    assert {"loss_func", "history", "callbacks"} <= before.keys()
    learn.lr_find(num_it=2)
    after = {name: value for name, value in vars(learn).items() if name != "recorder"}
    assert {**after, "lr_finder": None} == {**before, "lr_finder": None}


def test_callbacks_that_watch_take_no_part_in_the_finder() -> None:
    acted = []

    class Watches(Callback):
        fit_only = True

        def on_train_begin(self):
            acted.append("watches")

    class Shapes(Callback):
        def on_train_begin(self):
            acted.append("shapes")

    learn = toy_learner(callbacks=[Watches(), Shapes()], callback_fns=lambda learn: Watches())
    learn.lr_find(num_it=5)
    assert acted == ["shapes"]
    learn.fit(1)
    assert sorted(acted[1:]) == ["shapes", "watches", "watches"]


def test_the_history_holds_every_run() -> None:
    learn = toy_learner()
    learn.fit(1, 1e-2)
    learn.lr_find(num_it=5)
    assert learn.recorder is learn.history[-1]
    learn.fit_one_cycle(2, 1e-2)
    assert [run.call["method"] for run in learn.history] == ["fit", "lr_find", "fit_one_cycle"]
    assert [len(run.lrs) for run in learn.history] == [3, 5, 6]
    assert learn.recorder is learn.history[-1]


def test_a_finder_that_raises_leaves_the_recorder_of_the_fit() -> None:
    learn = toy_learner()
    learn.fit(1)
    recorder = learn.recorder
    with pytest.raises(ValueError, match="`wd` must be at least 0, got -1"):
        learn.lr_find(wd=-1)
    assert learn.recorder is recorder
    assert learn.history == [recorder]


# --- a loss that goes wrong


class Spoil(nn.Module):
    """Gives NaN from one forward pass in training on, or infinity as gradients."""

    def __init__(self, at: int, value: float = NAN) -> None:
        super().__init__()
        self.at, self.value, self.n = at, value, 0

    def forward(self, x):
        self.n += self.training
        return x * self.value if self.training and self.n > self.at else x


def spoilt(at: int, **options) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), Spoil(at), nn.Linear(8, 2))
    return Learner(toy_data(), model, silent=True, **options)


def test_the_message_names_layer_gradient_and_the_last_batches() -> None:
    learn = spoilt(4)
    with pytest.raises(NonFiniteLossError) as error:
        learn.fit(3, 1e-2)
    first, *said = str(error.value).splitlines()
    assert first.startswith(
        "The training loss is nan at epoch 1, batch 1, learning rate 0.01; try a lower learning rate"
    )
    assert said[0] == "The first output that is not finite is that of 3 (Spoil)."
    assert said[1] == "The first gradient that is not finite is that of 0.weight."
    last = [f"0.01: {loss:.4g}" for loss in learn.recorder.raw_losses]
    assert said[2] == f"The last batches, learning rate and loss: {', '.join([*last, '0.01: nan'])}."


def test_no_more_than_twenty_batches_are_shown() -> None:
    learn = spoilt(40)
    with pytest.raises(NonFiniteLossError) as error:
        learn.fit(20, 1e-2)
    assert str(error.value).splitlines()[-1].count(", 0.01: ") == 19


def test_saying_where_changes_nothing() -> None:
    learn = spoilt(4)
    parameters, generator = [], []

    class Keeps(Callback):
        _order = -6  # before the loss is looked at

        def on_backward_begin(self):
            parameters[:] = [p.detach().clone() for p in learn.model.parameters()]
            generator[:] = [torch.get_rng_state()]

    learn.callbacks = [Keeps()]
    with pytest.raises(NonFiniteLossError):
        learn.fit(3, 1e-2)
    assert equal(parameters, [*learn.model.parameters()])
    assert torch.equal(generator[0], torch.get_rng_state())
    # BatchNorm saw the batch that was refused, once and not again.
    assert learn.model[1].num_batches_tracked == 5
    assert learn.model[3].n == 5
    assert all(parameter.grad is None for parameter in learn.model.parameters())


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.full((2, 3), NAN), torch.ones(2, 1), "The batch's inputs hold NaN or infinity."),
        (torch.ones(2, 3), torch.full((2, 1), NAN), "The batch's targets hold NaN or infinity."),
    ],
)
def test_bad_data_are_named(x, y, said) -> None:
    assert said in [*diagnose(nn.Linear(3, 1), nn.MSELoss(), x, y)]


def test_bad_weights_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    with torch.no_grad():
        model[1].weight[0, 1] = float("inf")
    said = [*diagnose(model, nn.MSELoss(), torch.ones(2, 3), torch.ones(2, 1))]
    assert said[0].startswith("The first weight that is not finite is 1.weight; the last step")
    assert "The first output that is not finite is that of 1 (Linear)." in said


def test_a_model_that_is_well_has_nothing_to_say() -> None:
    model = nn.Linear(3, 1)
    with first_output(model) as found:
        model(torch.ones(2, 3))
    assert found == []
    assert [*diagnose(model, nn.MSELoss(), torch.ones(2, 3), torch.ones(2, 1))] == []
    assert not model._forward_hooks


def test_a_loss_function_that_makes_the_number_is_named() -> None:
    said = [*diagnose(nn.Linear(3, 1), lambda x, y: (x / 0).sum(), torch.ones(2, 3), torch.ones(2, 1))]
    assert said[0] == "All outputs are finite, so the loss function produces the NaN or infinity."


@pytest.mark.parametrize("read", [False, True])
def test_on_a_device_a_lost_loss_is_seen_when_the_losses_are_read(monkeypatch, read) -> None:
    # On a device losses wait to be read; here they wait in the same place without one.
    monkeypatch.setattr(
        "minifast.training.averages.Losses.append", lambda self, loss: self._waiting.append(loss.detach())
    )
    learn = spoilt(4)
    batches = []

    class Bar(Callback):
        def on_batch_end(self, train, raw_losses, num_batch):
            if train:
                batches.append(num_batch)
                if read:
                    raw_losses.read()

    learn.callbacks = [Bar()]
    with pytest.raises(NonFiniteLossError, match=r"nan at epoch 1, batch 1, learning rate 0\.01") as error:
        learn.fit(3, 1e-2)
    # Whoever reads, the next batch is the last; nobody does before the epoch's end. What the layers made of the batch
    # is not to be known any more, and nothing is said of it.
    assert "first output" not in str(error.value)
    assert len(batches) == (5 if read else 6)


def test_restore_puts_the_last_good_weights_back_and_ends_the_fit() -> None:
    learn = spoilt(4)
    epochs = []

    class Keeps(Callback):
        def on_epoch_begin(self):
            epochs.append(weights(learn))

    learn.callbacks = [Keeps()]
    with pytest.warns(UserWarning, match="The weights of epoch 1, batch 0 are restored"):
        learn.fit_one_cycle(3, 1e-2, on_nan="restore")
    assert equal(epochs[-1], weights(learn))
    assert len(learn.recorder.raw_losses) == len(learn.recorder.lrs) == 4
    assert learn.opt.lr == 1e-2
    assert learn.opt.mom == 0.9


def test_restore_puts_the_optimizers_state_back_too() -> None:
    learn = spoilt(4)
    states = []

    class Keeps(Callback):
        def on_epoch_begin(self):
            states.append([value.clone() for state in learn.opt.opt.state.values() for value in state.values()])

    learn.callbacks = [Keeps()]
    with pytest.warns(UserWarning, match="The weights of epoch 1, batch 0 are restored"):
        learn.fit_one_cycle(3, 1e-2, on_nan="restore")
    now = [value for state in learn.opt.opt.state.values() for value in state.values()]
    assert len(states[-1]) == len(now) > 0
    assert equal(states[-1], now)


def test_restore_does_not_trust_an_epoch_that_began_with_lost_weights() -> None:
    learn = toy_learner()
    before = weights(learn)

    class Spoils(Callback):
        def on_epoch_end(self, epoch):
            if epoch == 0:
                with torch.no_grad():
                    next(learn.model.parameters()).fill_(NAN)

    learn.callbacks = [Spoils()]
    with pytest.warns(UserWarning, match="The weights of epoch 0, batch 0 are restored"):
        learn.fit(3, 1e-2, on_nan="restore")
    assert equal(before, weights(learn))


def test_ignore_continues() -> None:
    learn = spoilt(4)
    learn.fit(3, 1e-2, on_nan="ignore")
    assert len(learn.recorder.raw_losses) == 9


def test_on_nan_is_one_of_three_words() -> None:
    with pytest.raises(ValueError, match="`on_nan` must be one of 'stop', 'restore', 'ignore', got 'pray'"):
        toy_learner().fit(1, on_nan="pray")


# --- failures that name the batch


class Dies(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        if i == 7:
            time.sleep(1)  # until the fit waits for it
            os._exit(3)  # as the system does to a process that takes too much memory
        return torch.ones(10), 0


def test_a_worker_that_dies_names_the_batch(tmp_path) -> None:
    data = DataBunch(DataLoader(Dies(), 3, num_workers=1), None, device="cpu", path=tmp_path)
    learn = Learner(data, simple_ann(10, 2), loss_func=nn.CrossEntropyLoss(), silent=True)
    with pytest.raises(RuntimeError, match="worker") as error:
        learn.fit(1, 1e-2, checkpoint="run", every=1)
    if sys.version_info < (3, 11):
        return  # errors have no notes yet
    (said,) = error.value.__notes__
    assert said.startswith("The error occurred in epoch 0 at batch 2 of 4, learning rate 0.01.")
    assert "run.checkpoint holds epoch 0, batch 2: repeat the same call to resume there." in said


def test_a_ctrl_c_prints_how_to_resume(tmp_path, capsys) -> None:
    class Interrupts(Callback):
        def on_batch_begin(self, iteration):
            if iteration == 4:
                raise KeyboardInterrupt

    learn = toy_learner(callbacks=[Interrupts()], path=tmp_path)
    learn.silent = False
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, checkpoint="run")
    out = capsys.readouterr().out
    assert "Stopped in epoch 1 at batch 1 of 3; " in out
    assert "run.checkpoint holds epoch 1, batch 0: repeat the same call to resume there." in out


# --- files from strangers


class Own:
    """A class of a user's own, in a model file."""


def test_what_only_trust_can_read(tmp_path) -> None:
    learn = toy_learner(path=tmp_path)
    learn.save("model", with_opt=False)
    file = tmp_path / "models" / "model.pth"
    state = torch.load(file, weights_only=True)
    state._own = Own()
    torch.save(state, file)
    with pytest.raises(FileFormatError, match="if you know who made it, load it with trust=True"):
        learn.load("model")
    learn.load("model", trust=True)


# --- seeds


PROGRAM = """
import torch
from minifast import *
set_seed(3)
x = torch.randn(64, 5)
data = DataBunch(TensorLoader(x, (x.sum(1) > 0).long(), 16, shuffle=True, device="cpu"), None, device="cpu")
model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
learn = Learner(data, model, loss_func=torch.nn.CrossEntropyLoss(), silent=True)
learn.fit_one_cycle(3, 1e-2)
found = [loss.hex() for loss in learn.recorder.raw_losses]
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_in_one_process_and_in_two() -> None:
    here: list[dict] = [{}, {}]
    for names in here:
        exec(PROGRAM, names)
    command = [sys.executable, "-c", "import torch; torch.set_num_threads(1)" + PROGRAM + "print(' '.join(found))"]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True)
    assert here[0]["found"] == here[1]["found"] == elsewhere.stdout.split()


def test_another_seed_gives_other_bits() -> None:
    set_seed(1)
    first = torch.rand(3)
    set_seed(2)
    assert not torch.equal(first, torch.rand(3))
    with pytest.raises(TypeError, match=r"`n` must be an integer, got .a."):
        set_seed("a")


# --- side by side, and for long


def test_two_learners_in_turn_do_not_disturb_each_other() -> None:
    def learner(seed):
        torch.manual_seed(seed)
        return Learner(toy_data(shuffle=True), simple_ann(10, 2), silent=True)

    alone = [learner(1), learner(2)]
    for learn in alone:
        for _ in range(3):
            learn.fit(1, 1e-2)
    together = [learner(1), learner(2)]
    for _ in range(3):
        for learn in together:
            learn.fit(1, 1e-2)
    assert all(equal(weights(a), weights(b)) for a, b in zip(alone, together, strict=True))


BESIDE = """
import sys
import time
from pathlib import Path
import torch
from minifast import *
torch.set_num_threads(1)
folder, name = Path(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
data = ImageDataBunch.from_folder(folder, bs=4, seed=0, device="cpu")
learn = Learner(data, simple_cnn((3, 8, 2)), metrics=[accuracy], silent=True)
learn.lr_find(num_it=5)
(folder / f"{name}.there").touch()
while not all((folder / f"{one}.there").exists() for one in ("first", "second")):
    time.sleep(0.001)
for _ in range(5):
    learn.fit_one_cycle(4, 1e-2, checkpoint=name, every=1, resume=False)
    learn.save("shared")
    Learner(data, simple_cnn((3, 8, 2)), silent=True).load("shared")  # whosever it is, it is whole
print(" ".join(loss.hex() for run in learn.history for loss in run.raw_losses))
"""


@pytest.mark.slow
def test_two_processes_on_one_folder_do_not_disturb_each_other(tmp_path) -> None:
    for part in ("train/a", "train/b", "valid/a", "valid/b"):
        write_images(tmp_path / "data" / part, 6, (8, 8), "L", seed=len(part))
    environment = {**os.environ, "MINIFAST_HOME": str(tmp_path / "home")}

    def begin(name):
        command = [sys.executable, "-c", BESIDE, str(tmp_path / "data"), name]
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    together = [begin("first"), begin("second")]
    first, second = (process.communicate()[0] for process in together)
    assert [process.returncode for process in together] == [0, 0]
    assert first == second
    assert len(first.split()) == 5 + 5 * 4 * 3
    left = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert left == sorted(
        [
            "shared.pth",
            *(f"{name}{end}" for name in ("first", "second") for end in (".checkpoint", ".previous.checkpoint")),
        ]
    )


def resources() -> tuple[float, int, int]:
    """Resident memory in MB, open files and threads of this process."""
    lines = (PROCESS / "status").read_text().splitlines()
    memory = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    return memory, len(list((PROCESS / "fd").iterdir())), threading.active_count()


def tiny(batches: int) -> Learner:
    x = torch.randn(4 * batches, 3)
    train = TensorLoader(x, (x.sum(1) > 0).long(), 4, shuffle=True, seed=0, device="cpu")
    return Learner(DataBunch(train, train, device="cpu"), simple_ann(3, 2, 4), torch.optim.SGD,
                   loss_func=nn.CrossEntropyLoss(), silent=True)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not PROCESS.is_dir(), reason="this system does not list a process's open files")
def test_a_thousand_fits_leave_memory_files_and_threads_where_they_were(tmp_path) -> None:
    import matplotlib.pyplot as plt

    learn = tiny(4)
    learn.path = tmp_path

    def fits(n):
        for i in range(n):
            learn.fit_one_cycle(1, 1e-2, checkpoint="run" if i % 100 == 0 else None, resume=False)
            if i % 10 == 0:
                plt.close(learn.recorder.plot_lr(return_fig=True))
        learn.lr_find(num_it=5)
        return resources()

    memory, files, threads = fits(200)
    later, files_later, threads_later = fits(1000)
    assert (files_later, threads_later) == (files, threads)
    assert later - memory < 10  # MB; the history of 1,000 runs is part of it
    assert not plt.get_fignums()


@pytest.mark.slow
@pytest.mark.skipif(not PROCESS.is_dir(), reason="this system does not list a process's open files")
def test_a_hundred_thousand_steps_take_no_more_memory_than_their_record() -> None:
    learn = tiny(1000)
    found = []

    class Looks(Callback):
        def on_epoch_end(self, epoch):
            found.append(resources())

    learn.fit_one_cycle(100, 1e-2, callbacks=[Looks()])
    assert len(learn.recorder.lrs) == 100_000
    (memory, files, threads), (later, files_later, threads_later) = found[9], found[-1]
    assert (files_later, threads_later) == (files, threads)
    assert later - memory < 25  # MB; 90,000 batches of four numbers, each a Python float in a list, are some 12
