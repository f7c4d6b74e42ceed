"""A finder that leaves no trace in callbacks, losses that go wrong and say so, seeds, and long lives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import toy_data, toy_learner, write_pictures
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
from minifast.diagnosis import diagnose, first_output

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
    learn.lr_find(num_it=2)
    after = {name: value for name, value in vars(learn).items() if name != "recorder"}
    assert {**after, "lr_finder": None} == {**before, "lr_finder": None}


def test_callbacks_that_watch_take_no_part_in_the_finder() -> None:
    acted = []

    class Watches(Callback):
        _watches = True

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


def test_a_refused_finder_leaves_the_record_of_the_fit() -> None:
    learn = toy_learner()
    learn.fit(1)
    recorder = learn.recorder
    with pytest.raises(ValueError, match="wd is -1"):
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
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), Spoil(at), nn.Linear(8, 2))
    return Learner(toy_data(), model, silent=True, **options)


def test_the_message_names_layer_gradient_and_the_last_batches() -> None:
    learn = spoilt(4)
    with pytest.raises(NonFiniteLossError) as error:
        learn.fit(3, 1e-2)
    first, *said = str(error.value).splitlines()
    assert first.startswith(
        "The training loss is nan at epoch 1, batch 1, learning rate 0.01; try a lower learning rate"
    )
    assert said[0] == "The first output that is not finite is that of 2 (Spoil)."
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
    left = []

    class Keeps(Callback):
        def on_batch_end(self, train):
            if train:
                left[:] = [*weights(learn), torch.get_rng_state()]

    learn.callbacks = [Keeps()]
    kept = learn.model[1].momentum
    with pytest.raises(NonFiniteLossError):
        learn.fit(3, 1e-2)
    assert kept == learn.model[1].momentum
    # BatchNorm saw the batch that was refused, once and not again.
    assert learn.model[1].num_batches_tracked == 5
    assert torch.equal(left[-1], torch.get_rng_state())
    assert all(parameter.grad is None for parameter in learn.model.parameters())


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.full((2, 3), NAN), torch.ones(2, 1), "The batch's inputs hold NaN or infinity."),
        (torch.ones(2, 3), torch.full((2, 1), NAN), "The batch's targets hold NaN or infinity."),
    ],
)
def test_bad_data_are_named(x, y, said) -> None:
    assert said in diagnose(nn.Linear(3, 1), nn.MSELoss(), x, y)


def test_bad_weights_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    with torch.no_grad():
        model[1].weight[0, 1] = float("inf")
    said = diagnose(model, nn.MSELoss(), torch.ones(2, 3), torch.ones(2, 1))
    assert "The first weight that is not finite is 1.weight." in said
    assert "The first output that is not finite is that of 1 (Linear)." in said


def test_a_model_that_is_well_has_nothing_to_say() -> None:
    model = nn.Linear(3, 1)
    assert first_output(model, torch.ones(2, 3)) is None
    assert diagnose(model, nn.MSELoss(), torch.ones(2, 3), torch.ones(2, 1)) == []


@pytest.mark.parametrize("read", [False, True])
def test_on_a_device_a_lost_loss_is_seen_when_the_losses_are_read(monkeypatch, read) -> None:
    # On a device losses wait to be read; here they wait in the same place without one.
    monkeypatch.setattr("minifast.state.Losses.append", lambda self, loss: self._waiting.append(loss.detach()))
    learn = spoilt(4)
    batches = []

    class Bar(Callback):
        def on_batch_end(self, train, raw_losses, num_batch):
            if train:
                batches.append(num_batch)
                if read:
                    raw_losses.read()

    learn.callbacks = [Bar()]
    with pytest.raises(NonFiniteLossError, match=r"nan at epoch 1, batch 1, learning rate 0\.01"):
        learn.fit(3, 1e-2)
    # Whoever reads, the next batch is the last; nobody does before the epoch's end.
    assert len(batches) == (5 if read else 6)


def test_restore_puts_the_last_good_weights_back_and_ends_the_fit() -> None:
    learn = spoilt(4)
    epochs = []

    class Keeps(Callback):
        def on_epoch_begin(self):
            epochs.append(weights(learn))

    learn.callbacks = [Keeps()]
    with pytest.warns(UserWarning, match="The weights of the beginning of epoch 1 are put back"):
        learn.fit_one_cycle(3, 1e-2, on_nan="restore")
    assert equal(epochs[-1], weights(learn))
    assert len(learn.recorder.raw_losses) == len(learn.recorder.lrs) == 4
    assert learn.opt.lr == 1e-2
    assert learn.opt.mom == 0.9


def test_restore_does_not_trust_an_epoch_that_began_with_lost_weights(monkeypatch) -> None:
    monkeypatch.setattr("minifast.callbacks.guard.Guard.on_epoch_end", lambda self: None)
    learn = toy_learner()
    before = weights(learn)

    class Spoils(Callback):
        def on_epoch_end(self, epoch):
            if epoch == 0:
                with torch.no_grad():
                    next(learn.model.parameters()).fill_(NAN)

    learn.callbacks = [Spoils()]
    with pytest.warns(UserWarning, match="The weights of the beginning of epoch 0 are put back"):
        learn.fit(3, 1e-2, on_nan="restore")
    assert equal(before, weights(learn))


def test_ignore_goes_on() -> None:
    learn = spoilt(4)
    learn.fit(3, 1e-2, on_nan="ignore")
    assert len(learn.recorder.raw_losses) == 9


def test_on_nan_is_one_of_three_words() -> None:
    with pytest.raises(ValueError, match="on_nan is 'pray'; it must be one of 'stop', 'restore', 'ignore'"):
        toy_learner().fit(1, on_nan="pray")


# --- failures that name the batch


class Dies(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        if i == 7:
            os._exit(3)  # as the system does to a process that takes too much memory
        return torch.ones(10), 0


def test_a_worker_that_dies_names_the_batch(tmp_path) -> None:
    data = DataBunch(DataLoader(Dies(), 3, num_workers=1), None, device="cpu", path=tmp_path)
    learn = Learner(data, simple_ann(10, 2), loss_func=nn.CrossEntropyLoss(), silent=True)
    with pytest.raises(RuntimeError, match="worker") as error:
        learn.fit(1, 1e-2, checkpoint="run", every=1)
    (said,) = error.value.__notes__
    # Which batch that is depends on how far ahead the worker was; checkpoint and message agree.
    (batch,) = re.findall(r"^This was in epoch 0 at batch ([012]) of 4, learning rate 0\.01\.", said)
    assert f"run.checkpoint is of epoch 0, batch {batch}: the same call goes on from there." in said


def test_a_ctrl_c_says_how_to_go_on(tmp_path, capsys) -> None:
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
    assert "run.checkpoint is of epoch 1, batch 0: the same call goes on from there." in out


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
    with pytest.raises(TypeError, match="n is 'a'"):
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
from pathlib import Path
import torch
from minifast import *
torch.set_num_threads(1)
folder, name = Path(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
data = ImageDataBunch.from_folder(folder, bs=4, seed=0, device="cpu")
learn = Learner(data, simple_cnn((3, 8, 2)), metrics=[accuracy], silent=True)
learn.lr_find(num_it=5)
for _ in range(5):
    learn.fit_one_cycle(4, 1e-2, checkpoint=name, every=1, resume=False)
    learn.save("shared")
    Learner(data, simple_cnn((3, 8, 2)), silent=True).load("shared")  # whosever it is, it is whole
print(" ".join(loss.hex() for run in learn.history for loss in run.raw_losses))
"""


def test_two_processes_on_one_folder_do_not_disturb_each_other(tmp_path) -> None:
    for part in ("train/a", "train/b", "valid/a", "valid/b"):
        write_pictures(tmp_path / "data" / part, 6, (8, 8), "L", seed=len(part))
    environment = {**os.environ, "MINIFAST_HOME": str(tmp_path / "home")}

    def begin(name):
        command = [sys.executable, "-c", BESIDE, str(tmp_path / "data"), name]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    together = [begin("first"), begin("second")]
    first, second = (process.communicate()[0] for process in together)
    assert [process.returncode for process in together] == [0, 0]
    assert first == second
    assert len(first.split()) == 5 + 5 * 4 * 3
    left = sorted(path.name for path in (tmp_path / "data" / "models").iterdir())
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
