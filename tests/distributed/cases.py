"""Train the same cases in one process and in several, and write what each process saw.

``python cases.py FOLDER [CASES]`` runs all cases, or those named, and writes ``FOLDER/SIZE_RANK.pt``, where SIZE is
the number of processes. torchrun starts several.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from minifast import (
    AccumulateScheduler,
    Callback,
    CSVLogger,
    DataBunch,
    EarlyStoppingCallback,
    EMACallback,
    LabelSmoothingCrossEntropy,
    Learner,
    MinifastError,
    NonFiniteLossError,
    Precision,
    R2Score,
    SaveModelCallback,
    TensorLoader,
    accuracy,
    set_seed,
)
from minifast.distributed.group import _mute_warnings

torch.set_num_threads(1)
SGD = partial(torch.optim.SGD, momentum=0.9)


def samples(n: int, kind: str = "class") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    if kind == "class":
        return x, (x[:, 0] + 0.3 * torch.randn(n, generator=generator) > 0).long() + (x[:, 1] > 1).long()
    if kind == "ignored":
        y = samples(n)[1]
        y[torch.rand(n, generator=generator) < 0.5] = -100
        y[::3] = 1
        return x, y
    return x, x @ torch.randn(6, 2, generator=generator, dtype=torch.float64)


def network(outputs: int = 3, *more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *more, nn.Linear(8, outputs)).double()


def tensors(n: int, bs: int = 16, kind: str = "class") -> DataBunch:
    x, y = samples(n, kind)
    valid = samples(n // 2 + 1, kind)
    return DataBunch(
        TensorLoader(x, y, bs, shuffle=True, seed=1, device="cpu"), TensorLoader(*valid, 10, device="cpu"), device="cpu"
    )


def loaders(n: int, bs: int = 16, **options) -> DataBunch:
    valid = DataLoader(TensorDataset(*samples(n // 2 + 1)), 10)
    return DataBunch(DataLoader(TensorDataset(*samples(n)), bs, **options), valid, device="cpu")


def fitted(data: DataBunch, model: nn.Module | None = None, epochs: int = 2, lr: float = 0.02, after=None, **options):
    set_seed(3)
    callbacks = options.pop("fit_callbacks", None)
    options = {
        "metrics": [accuracy, Precision(average="macro")],
        "opt_func": SGD,
        "silent": True,
        "path": FOLDER,
        **options,
    }
    learn = Learner(data, network() if model is None else model, **options)
    if after is not None:
        after(learn)
    learn.fit_one_cycle(epochs, lr, callbacks=callbacks)
    return result(learn)


def result(learn: Learner) -> dict:
    recorder = learn.recorder
    preds, targets = learn.get_preds()
    return {
        "weights": {name: value.clone() for name, value in learn.model.state_dict().items()},
        "losses": recorder.raw_losses,
        "lrs": recorder.lrs,
        "moms": recorder.moms,
        "val_losses": recorder.val_losses,
        "metrics": recorder.metrics,
        "validated": learn.validate(),
        "preds": preds,
        "targets": targets,
        "random": torch.rand(1),
    }


# --- the cases


class Branches(nn.Module):
    """Has a parameter that no batch uses, and one that some batches use."""

    def __init__(self):
        super().__init__()
        self.body, self.unused, self.sometimes = network(), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(3))
        self.double()

        self.passes = 0

    def forward(self, x):
        self.passes += self.training
        return self.body(x) * (self.sometimes if self.passes % 2 == 0 else 1)


class ScaledLoss(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, output, target):
        return nn.functional.cross_entropy(output * self.scale, target) + self.scale**2


class Penalty(Callback):
    """Adds a term to the loss."""

    def __init__(self, model):
        self.weight = model[0].weight

    def on_backward_begin(self, last_loss):
        return {"last_loss": last_loss + 0.1 * self.weight.pow(2).sum()}


class Unfreeze(Callback):
    """Unfreezes the first layer in the second epoch."""

    def __init__(self, model):
        self.layer = model[0]
        self.layer.requires_grad_(False)

    def on_epoch_begin(self, epoch):
        if epoch == 1:
            self.layer.requires_grad_(True)


class StopOnOneRank(Callback):
    """Stops at a batch, skips a step at another, but on the last process only."""

    def __init__(self):
        self.is_last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1

    def on_backward_begin(self, iteration):
        return {"skip_bwd": True, "skip_step": True} if self.is_last and iteration == 2 else None

    def on_batch_end(self, iteration, train):
        return {"stop_epoch": True, "stop_training": True} if self.is_last and train and iteration == 5 else None


class SometimesSkips(Callback):
    """Accumulates gradients by itself."""

    def on_backward_end(self, num_batch):
        return {"skip_step": True, "skip_zero": True} if num_batch % 2 == 0 else None


class Rows(Dataset):
    """Samples that are several tensors and a text."""

    def __init__(self, n):
        self.x, self.y = samples(n)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"a": self.x[i, :3], "b": self.x[i, 3:]}, self.y[i]


class OfDict(nn.Module):
    """Takes a dict, returns several outputs."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, batch):
        output = self.body(torch.cat([batch["a"], batch["b"]], 1))
        return {"output": output, "features": output**2}


def dict_loss(output, target):
    return nn.functional.cross_entropy(output["output"], target)


class Stream(IterableDataset):
    """Samples of this process only."""

    sharded = True

    def __init__(self, n):
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.rows, self.size = list(zip(*samples(n), strict=True))[rank::size], size

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)


def stream() -> dict:
    # Batches of 12 in all: process r has every r-th sample.
    size = int(os.environ.get("WORLD_SIZE", 1))
    data = DataBunch(*(DataLoader(Stream(n), 12 // size) for n in (60, 36)), device="cpu")
    found = fitted(data, metrics=[accuracy], loss_func=nn.CrossEntropyLoss())
    return {name: found[name] for name in ("weights", "losses", "lrs", "val_losses", "metrics", "validated")}


def refused_stream() -> dict:
    class NotSharded(Stream):
        sharded = False

        def __init__(self, n):
            self.rows = list(zip(*samples(n), strict=True))

    learn = Learner(DataBunch(DataLoader(NotSharded(20), 4), device="cpu"), network(), loss_func=nn.CrossEntropyLoss())
    try:
        learn.fit(1)
    except MinifastError as error:
        return {"refused": "IterableDataset" in str(error)}
    return {"refused": int(os.environ.get("WORLD_SIZE", 1)) == 1}


def refused_without_length() -> dict:
    """The first error is that of several processes, whatever else an IterableDataset needs."""

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(list(zip(*samples(20), strict=True)))

    class Sized(Endless):
        def __len__(self):
            return 20

    def learner(data, **options):
        return Learner(data, network(), silent=True, **options)

    makers = {
        "loader": lambda: DataBunch(DataLoader(Endless(), 4), device="cpu"),
        "data set": lambda: DataBunch.create(Endless(), bs=4, device="cpu"),
        "without loss": lambda: learner(DataBunch(DataLoader(Sized(), 4), device="cpu")),
    }
    said = {
        name: told(make, "is an IterableDataset, whose samples cannot be split over") for name, make in makers.items()
    }
    alone = learner(DataBunch(DataLoader(Sized(), 4), device="cpu"), loss_func=nn.CrossEntropyLoss(), distributed=False)
    alone.fit(1)
    return {"said": said, "losses": len(alone.recorder.raw_losses)}


def checked() -> dict:
    """Each process has the result of the first one, also where their random numbers differ."""
    set_seed(3)
    learn = Learner(tensors(33), network(), opt_func=SGD, silent=True)
    torch.manual_seed(int(os.environ.get("RANK", 0)))
    before = torch.get_rng_state()
    text = str(learn.check())
    size = os.environ.get("WORLD_SIZE")
    assert f"All {size} processes return this result, which is that of process 0." in text or size is None
    same = torch.equal(before, torch.get_rng_state())
    return {"of all ranks": {"text": text, "problems": len(learn.check().findings)}, "restored": same}


class Warns(Callback):
    def on_train_begin(self):
        warnings.warn("by the script", stacklevel=1)


def warned() -> dict:
    """Warnings of minifast are shown by the first process, those of others by each."""
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before, warnings.showwarning = warnings.showwarning, lambda message, *_, **__: shown.append(str(message))
        muted = int(os.environ.get("RANK", 0)) > 0
        if muted:
            _mute_warnings()
        try:
            data = DataBunch(
                tensors(33).train_dl, DataLoader(TensorDataset(*samples(3)), 10, drop_last=True), device="cpu"
            )
            learn = Learner(data, network(), opt_func=SGD, silent=True, callbacks=[Warns()])
            learn.fit(1)
        finally:
            warnings.showwarning = before
    ours = [text for text in shown if text.startswith("The validation data have no batch")]
    return {"others": shown.count("by the script"), "ours": len(ours) == (not muted)}


def batches_of_list() -> dict:
    batches = [samples(n) for n in (9, 1, 4, 7)]
    return fitted(DataBunch(batches, batches[:2], device="cpu"), loss_func=nn.CrossEntropyLoss(), metrics=[accuracy])


def own_batch_sampler() -> dict:
    dataset = TensorDataset(*samples(40))
    generator = torch.Generator().manual_seed(4)
    sampler = BatchSampler(RandomSampler(dataset, generator=generator), 7, drop_last=False)
    return fitted(DataBunch(DataLoader(dataset, batch_sampler=sampler), DataLoader(dataset, 10), device="cpu"))


def torchmetrics_objects() -> dict:
    from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score

    metrics = [MulticlassAUROC(3, thresholds=None), MulticlassF1Score(3), accuracy]
    return fitted(tensors(65), metrics=metrics)


def lr_find() -> dict:
    set_seed(3)
    learn = Learner(loaders(130, shuffle=True), network(), opt_func=SGD, silent=True)
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    found = learn.lr_find(num_it=40, repeats=2)
    same = all(torch.equal(before[name], value) for name, value in learn.model.state_dict().items())
    learn.fit(1, 0.01)
    trained = result(learn)
    set_seed(3)
    other = Learner(loaders(130, shuffle=True), network(), opt_func=SGD, silent=True)
    other.fit(1, 0.01)
    no_trace = all(
        torch.equal(value, other.model.state_dict()[name]) for name, value in learn.model.state_dict().items()
    )
    return {
        "curves": found.curves,
        "suggestion": found.suggestion,
        "no trace": same and no_trace,
        "weights": trained["weights"],
    }


def files() -> dict:
    folder = FOLDER / "files"
    data = tensors(65)
    callbacks = [CSVLogger(), SaveModelCallback(), EarlyStoppingCallback(patience=1, min_delta=10.0)]
    found = fitted(data, epochs=4, path=folder, fit_callbacks=callbacks)
    set_seed(3)
    learn = Learner(tensors(65), network(), opt_func=SGD, path=folder, silent=True)
    learn.load("bestmodel")
    learn.save("again")
    learn.export()
    learn.history.to_csv(folder / "epochs.csv")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {**found, "files": names, "rows": len((folder / "history.csv").read_text().splitlines())}


def not_finite() -> dict:
    x, y = samples(40)
    x[13] = float("nan")
    set_seed(3)
    learn = Learner(DataBunch(TensorLoader(x, y, 8, device="cpu"), device="cpu"), network(),
                    loss_func=nn.CrossEntropyLoss(), silent=True)  # fmt: skip
    try:
        learn.fit(1, 0.1)
    except NonFiniteLossError as error:
        said = [str(error)[:60], "fix the data or leave that sample out" in str(error)]
        lines = [line for line in str(error).splitlines() if "The " in line][1:-1]
        assert all(line.startswith("Process 1 of") for line in lines) == ("WORLD_SIZE" in os.environ)  # has sample 13
        said += [line[line.index("The ") :] for line in lines]
    data = tensors(64)
    return {"said": said, **fitted(data)}  # the processes train together after it


def alone() -> dict:
    return fitted(tensors(65), distributed=False)


def interpreted() -> dict:
    set_seed(3)
    learn = Learner(tensors(65), network(), metrics=[accuracy], silent=True)
    learn.fit(1, 0.01)
    interpretation = learn.interpret()
    losses, indices = interpretation.top_losses(5)
    return {
        "confusion": torch.as_tensor(interpretation.confusion_matrix()),
        "losses": losses,
        "indices": torch.as_tensor(indices),
    }


def buffers() -> dict:
    """BatchNorm differs by process, but all have the statistics of the first."""
    found = fitted(tensors(64), network(3, nn.BatchNorm1d(8).double(), nn.Dropout(0.2)))
    return {"of all ranks": (found["weights"], found["random"])}


def by_the_first() -> dict:
    """What the page allows under ``if rank == 0`` waits for no other process."""
    import matplotlib.pyplot as plt

    set_seed(3)
    images = torch.rand(33, 1, 4, 4, dtype=torch.float64)
    loader = TensorLoader(images, samples(33)[1], 16, shuffle=True, seed=1, device="cpu")
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    learn = Learner(DataBunch(loader, loader, device="cpu"), model, opt_func=SGD, silent=True, path=FOLDER)
    learn.fit(1, 0.01)
    learn.lr_find(num_it=8)
    interpretation = learn.interpret()
    if os.environ.get("RANK", "0") == "0":
        with contextlib.redirect_stdout(io.StringIO()):
            print(learn, learn.data, learn.summary(), learn.history)
            learn.predict(images[0])
            learn.data.show_batch()
            learn.show_results()
        learn.plot_schedule(1)
        recorder = learn.history[0]
        for plot in (learn.recorder.plot, recorder.plot_losses, recorder.plot_lr, interpretation.plot_confusion_matrix):
            plt.close(plot(return_fig=True))
        plt.close("all")
    learn.fit(1, 0.01)
    return {"weights": result(learn)["weights"]}


class ChangeOnOneRank(Callback):
    """Changes a weight at one event, on the last process only."""

    _order = 100_000

    def __init__(self, model, event):
        self.model, self.event = model, event

    def change(self):
        if is_last_of_several():
            self.model[2].bias.data += 0.001

    def on_epoch_end(self):
        if self.event == "epoch":
            self.change()

    def on_train_end(self):
        if self.event == "fit":
            self.change()


def is_last_of_several() -> bool:
    size = int(os.environ.get("WORLD_SIZE", 1))
    return size > 1 and int(os.environ["RANK"]) == size - 1


def told(call, *words: str) -> str:
    """ "refused" if the call raises an error with all words, or in a single process, where nothing can differ."""
    try:
        call()
    except MinifastError as error:
        if "WORLD_SIZE" in os.environ and not all(word in str(error) for word in words):
            return str(error)
        return "refused"
    return "accepted" if "WORLD_SIZE" in os.environ else "refused"


def differences() -> dict:
    """What differs between the processes is named, and nothing is computed from several models."""
    said, last = {}, is_last_of_several()

    def learner(model=None):
        set_seed(3)
        return Learner(tensors(33), network() if model is None else model, opt_func=SGD, silent=True, path=FOLDER)

    for event, when in (("epoch", "at the end of epoch 0"), ("fit", "at the end of the run")):
        learn = learner()
        run = partial(learn.fit, 1, callbacks=ChangeOnOneRank(learn.model, event))
        said[event] = told(run, "The parameter 2.bias differs in process 0 and process", when)
    learn = learner()
    ChangeOnOneRank(learn.model, "").change()
    calls = {"validate": learn.validate, "get_preds": learn.get_preds, "save": partial(learn.save, "differs")}
    calls |= {"interpret": learn.interpret, "export": partial(learn.export, "differs.pkl")}
    for name, call in calls.items():
        said[name] = told(call, "The parameter 2.bias differs in process 0 and process", "when")
    said["file"] = any(FOLDER.rglob("differs*")) and "WORLD_SIZE" in os.environ
    learn = learner()
    rate = 0.02 if last else 0.01
    said["rate"] = told(
        lambda: learn.fit_one_cycle(1, rate), "max_lr of fit_one_cycle: it is 0.01 in process 0 and 0.02"
    )
    said["epochs"] = told(lambda: learn.fit(1 + last), "epochs of fit: it is 1 in process 0 and 2 in process")
    said["batches"] = told(
        lambda: learn.get_preds(n_batch=1 + last), "n_batch of get_preds: it is 1 in process 0 and 2"
    )
    method = learn.validate if last else learn.get_preds
    said["method"] = told(method, "differ in the method: it is 'get_preds' in process 0 and 'validate' in process")
    said["shape"] = told(
        lambda: learner(network(3 + last)), "2.weight of the model: it is '(3, 8) float64' in process 0"
    )
    trained = fitted(tensors(33), epochs=1)  # after all these, they train together
    return {"said": said, "weights": trained["weights"]}


CASES = {
    **{
        f"{n} samples, {name}": partial(lambda n, opt: fitted(tensors(n), opt_func=opt), n, opt)
        for n in (63, 64, 65, 129)
        for name, opt in (("SGD", SGD), ("AdamW", torch.optim.AdamW))
    },
    "DataLoader": lambda: fitted(loaders(65, shuffle=True)),
    "DataLoader, drop_last": lambda: fitted(loaders(65, shuffle=True, drop_last=True)),
    "DataLoader, own generator": lambda: fitted(
        loaders(65, shuffle=True, generator=torch.Generator().manual_seed(4))
    ),
    "DataLoader, workers": lambda: fitted(
        loaders(40, shuffle=True, num_workers=1, generator=torch.Generator().manual_seed(4))
    ),
    "own batch sampler": own_batch_sampler,
    "list of batches": batches_of_list,
    "dicts": lambda: fitted(
        DataBunch(DataLoader(Rows(50), 8), DataLoader(Rows(23), 5), device="cpu"), OfDict(), loss_func=dict_loss,
        metrics=[],
    ),
    "last batch of one": lambda: fitted(loaders(33)),
    "regression": lambda: fitted(tensors(65, kind="number"), network(2), metrics=[R2Score()]),
    "sum loss": lambda: fitted(tensors(65), lr=1e-3, loss_func=nn.CrossEntropyLoss(reduction="sum")),
    "ignored targets": lambda: fitted(tensors(65, bs=7, kind="ignored"), metrics=[accuracy]),
    "class weights": lambda: fitted(
        tensors(65), loss_func=nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64))
    ),
    "accumulation": lambda: fitted(tensors(131, bs=10), callbacks=[AccumulateScheduler(n_step=3)]),
    "accumulation, ignored targets": lambda: fitted(
        tensors(131, bs=4, kind="ignored"), callbacks=[AccumulateScheduler(n_step=4)], metrics=[accuracy]
    ),
    "own accumulation": lambda: fitted(tensors(131, bs=10), callbacks=[SometimesSkips()]),
    "clipping, EMA, label smoothing": lambda: fitted(
        tensors(65), callbacks=[EMACallback(decay=0.9)], loss_func=LabelSmoothingCrossEntropy(),
        after=lambda learn: learn.clip_grad(0.1),
    ),
    "parameter of the loss": lambda: fitted(tensors(65), loss_func=ScaledLoss()),
    "penalty": lambda: (lambda model: fitted(tensors(65), model, callbacks=[Penalty(model)]))(network()),
    "unused parameters": lambda: fitted(tensors(65, bs=9), Branches()),
    "unfreezing": lambda: (lambda model: fitted(tensors(65), model, callbacks=[Unfreeze(model)]))(network()),
    "one process stops": lambda: fitted(tensors(129), callbacks=[StopOnOneRank()]),
    "torchmetrics": torchmetrics_objects,
    "IterableDataset": stream,
    "IterableDataset, not split": refused_stream,
    "lr_find": lr_find,
    "files": files,
    "NaN": not_finite,
    "differences": differences,
    "printed and plotted by the first": by_the_first,
    "IterableDataset, without a length": refused_without_length,
    "check": checked,
    "warnings": warned,
    "alone": alone,
    "interpretation": interpreted,
    "buffers": buffers,
}  # fmt: skip


SLOW = (
    *("63 samples, AdamW", "64 samples, AdamW", "65 samples, SGD", "129 samples, SGD"),
    *(
        "DataLoader, drop_last",
        "last batch of one",
        "regression",
        "class weights",
        "own accumulation",
        "torchmetrics",
        "files",
        "printed and plotted by the first",
    ),
)
DEFAULT = [name for name in CASES if name not in SLOW]


def main(folder: str, *names: str) -> None:
    global FOLDER
    size, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    FOLDER = Path(folder) / size
    results = {name: CASES[name]() for name in names or DEFAULT}
    torch.save(results, f"{folder}/{size}_{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
