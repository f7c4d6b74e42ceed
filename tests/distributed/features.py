"""Train with each kind of batch, sampler, loss and training option, in one process and in several.

``main`` writes what each process saw, as ``cases.py`` does. In several processes ``lr_find`` comes before the fit, in
one process it has a learner of its own: where the fits are equal, it left no trace.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import SGD, network, result, samples
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from minifast import (
    AUROC,
    AccumulateScheduler,
    Callback,
    ConfusionMatrix,
    DataBunch,
    EarlyStoppingCallback,
    EMACallback,
    FBeta,
    LabelSmoothingCrossEntropy,
    Learner,
    MinifastError,
    Precision,
    ReduceLROnPlateauCallback,
    SaveModelCallback,
    TabularDataBunch,
    TensorDataBunch,
    TensorLoader,
    accuracy,
    rmse,
    set_seed,
    tabular_learner,
    vision_learner,
)
from minifast.training import EVENTS

RANK, SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
FOLDER = Path()


def trained(
    make: Callable[[], Learner], fit: Callable[[Learner], Any] | None = None, find: bool = True, random: bool = True
) -> dict:
    """What a fit of the learner that ``make`` returns gives, with the curve of ``lr_find``.

    Where each process samples for its own share of a batch, the generators are not those of one process.
    """

    def make_anew() -> Learner:
        set_seed(3)
        learn = make()
        learn.silent, learn.path = True, FOLDER
        return learn

    learn = make_anew()
    found = learn.lr_find(num_it=8) if find and SIZE > 1 else None
    (fit or (lambda learn: learn.fit_one_cycle(2, 0.02)))(learn)
    outcome = result(learn)
    if not random:
        del outcome["random"]
    if find and SIZE == 1:
        found = make_anew().lr_find(num_it=8)
    curve = {} if found is None else {"found": found.losses, "suggestion": found.suggestion}
    return {**outcome, **curve}


def learner(data: DataBunch, model: nn.Module | None = None, opt_func: Any = SGD, **options: Any) -> Learner:
    options = {"metrics": [accuracy, Precision(average="macro")], **options}
    return Learner(data, network() if model is None else model, opt_func, **options)


def both(make: Callable[[int], Any], n: int, bs: int = 16, **options: Any) -> tuple[DataLoader, DataLoader]:
    """Loaders of the data sets of n samples and half as many."""
    return DataLoader(make(n), bs, **options), DataLoader(make(n // 2 + 1), 10, **{**options, "shuffle": False})


def pairs(n: int) -> TensorDataset:
    return TensorDataset(*samples(n))


def arrays(n: int, bs: int = 16, **options: Any) -> DataBunch:
    valid = samples(n // 2 + 1)
    options = {"bs": bs, "val_bs": 10, "seed": 1, "device": "cpu", "dtype": torch.float64, **options}
    return TensorDataBunch.from_arrays(*samples(n), valid=valid, **options)


# --- losses of the model


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class WithLoss(nn.Module):
    """Returns its own loss, as the models of Hugging Face do."""

    def __init__(self, kind: str, wrap: Callable[..., Any] = dict):
        super().__init__()
        self.kind, self.wrap, self.body = kind, wrap, network(2 if kind == "number" else 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits, loss = self.body(input_ids), None
        if attention_mask is not None:
            logits = logits * attention_mask[..., None]
        if labels is not None and self.kind == "number":
            loss = functional.mse_loss(logits, labels)
        elif labels is not None and self.kind == "next":
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        elif labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return self.wrap(loss=loss, logits=logits)


class TinyForCausalLM(WithLoss):
    """Its name says that it predicts the next token."""


class Named(Dataset):
    """Samples that are dicts, of single values or of sequences with ignored positions."""

    def __init__(self, n: int, kind: str):
        generator = torch.Generator().manual_seed(n)
        shape = (n,) if kind in ("class", "number") else (n, 5)
        self.x = torch.randn(*shape, 6, generator=generator, dtype=torch.float64)
        self.mask = (torch.rand(shape, generator=generator) < 0.8).double()
        self.y = self.x[..., :2] * 2 if kind == "number" else (self.x[..., 0] > 0).long() + (self.x[..., 1] > 0)
        if kind != "number":
            ignored = torch.rand(shape, generator=generator) < 0.3
            self.y[ignored if kind != "class" or n % 16 != 1 else []] = -100  # a last batch of one must count

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"input_ids": self.x[i], "attention_mask": self.mask[i], "labels": self.y[i]}


def own_loss(n: int, kind: str, wrap: Callable[..., Any] = dict, **options: Any) -> Learner:
    model = (TinyForCausalLM if kind == "next" else WithLoss)(kind, wrap)
    data = DataBunch(*both(partial(Named, kind=kind), n, shuffle=True), device="cpu")
    return learner(data, model, metrics=[rmse] if kind == "number" else [], **options)


# --- batches


@dataclass
class Graphs:
    """A batch that is an object with a method ``to``."""

    a: Tensor
    b: Tensor
    y: Tensor

    def to(self, device):
        return Graphs(self.a.to(device), self.b.to(device), self.y.to(device))


class OfParts(nn.Module):
    """Takes two arrays as arguments, by name, in a dict or in an object."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, a, b=None):
        if b is None:
            a, b = (a["a"], a["b"]) if isinstance(a, dict) else (a.a, a.b)
        return self.body(torch.cat([a, b], 1))


class Dicts(Dataset):
    def __init__(self, n: int):
        self.x, self.y = samples(n)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"a": self.x[i, :2], "b": self.x[i, 2:], "wanted": self.y[i], "weight": self.x[i, 5].exp()}


def as_graphs(items: list[dict]) -> Graphs:
    return Graphs(*(torch.stack([item[name] for item in items]) for name in ("a", "b", "wanted")))


def as_parts(n: int) -> TensorDataset:
    x, y = samples(n)
    return TensorDataset(x[:, :2], x[:, 2:], y)


def batches_of(n: int, kind: Callable[[Any], Any] = lambda batch: batch) -> list[Any]:
    x, y = samples(n)
    return [kind((x[i : i + 16], y[i : i + 16])) for i in range(0, n, 16)]


def halves(batch: Any) -> Any:
    return (batch[0][:, :2], batch[0][:, 2:]), batch[1]


def weighted(output: Any, target: Tensor, weight: Tensor) -> Tensor:
    return (functional.cross_entropy(output, target, reduction="none") * weight).mean()


def of_dict(batch: Any) -> Any:
    return (batch["a"], batch["b"]), batch["wanted"]


def with_weights(batch: Any) -> Any:
    return (batch["a"], batch["b"]), (batch["wanted"], batch["weight"])


CROSS_ENTROPY = {"loss_func": nn.CrossEntropyLoss()}


def several_targets(output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return functional.cross_entropy(output, target) + (output.mean(1) - weight).pow(2).mean()


# --- streams and samplers


class Stream(IterableDataset):
    """Samples without a length; with ``sharded`` those of this process only."""

    def __init__(self, n: int, sharded: bool):
        self.rows, self.sharded = list(zip(*samples(n), strict=True)), sharded

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows[RANK::SIZE] if self.sharded else self.rows)


def stream(n: int, sharded: bool = True) -> Learner:
    # Of whole batches of 12 each process has every SIZE-th sample.
    data = DataBunch.create(
        Stream(n, sharded), Stream(36, sharded), bs=12 // SIZE, val_bs=12 // SIZE, epoch_length=4, val_length=3,
        device="cpu",
    )  # fmt: skip
    return learner(data, metrics=[accuracy], **CROSS_ENTROPY)


def trained_on_stream(n: int) -> dict:
    outcome = trained(lambda: stream(n))
    return {name: value for name, value in outcome.items() if name not in ("preds", "targets")}


def refused(call: Callable[[], Any], *words: str) -> dict:
    """Whether several processes refuse what one does."""
    try:
        call()
    except MinifastError as error:
        return {"refused": all(word in str(error) for word in words)}
    return {"refused": SIZE == 1}


def by_sampler(n: int, make: Callable[[int], Any]) -> Learner:
    sampler = make(n)
    train = DataLoader(pairs(n), 16, sampler=sampler)
    return learner(DataBunch(train, DataLoader(pairs(20), 7), device="cpu"), **CROSS_ENTROPY)


def weights_of(n: int) -> Tensor:
    return samples(n)[0][:, 0].abs()


class Rotated(torch.utils.data.Sampler):
    """An order of one's own, another one in each epoch."""

    def __init__(self, n: int):
        self.n, self.epoch = n, 0

    def __len__(self):
        return self.n

    def __iter__(self):
        self.epoch += 1
        return iter([(i * 7 + self.epoch) % self.n for i in range(self.n)])


class Batches(Dataset):
    """Its elements are whole batches."""

    def __init__(self, n: int):
        self.batches = batches_of(n)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i]


# --- images, masks and tables


def images(n: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    return x, (x[:, 0].float().mean((1, 2)) > 127).long()


def as_double(batch: Any) -> Any:
    return batch[0].double(), batch[1]


def image_data(n: int) -> DataBunch:
    valid = images(n // 2 + 1)
    data = TensorDataBunch.from_arrays(*images(n), valid=valid, bs=16, val_bs=10, seed=1, classes=["dark", "bright"],
                                       device="cpu")  # fmt: skip
    data.add_tfm(as_double)
    return data


def conv(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, outputs, 3, padding=1)).double()


def pooled() -> nn.Module:
    return nn.Sequential(conv(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double()


def segmentation(n: int) -> Learner:
    def masks(n: int) -> tuple[Tensor, Tensor]:
        x, _ = images(n)
        y = (x[:, 0] > 127).long()
        y[:, :2, :] = 255
        y[::3, 4:] = 255
        return x.double() / 255, y

    train, valid = (TensorLoader(*masks(k), 7, device="cpu") for k in (n, n // 2 + 1))
    return learner(DataBunch(train, valid, device="cpu", classes=["a", "b"]), conv(), metrics=[accuracy],
                   loss_func=nn.CrossEntropyLoss(ignore_index=255))  # fmt: skip


def table(n: int) -> Learner:
    import pandas as pd

    x, y = samples(n + n // 2)
    frame = pd.DataFrame({"color": [f"c{int(v)}" for v in x[:, 3].abs() * 2], "size": x[:, 0].float(),
                          "kind": [f"k{int(v)}" for v in y]})  # fmt: skip
    frame.loc[frame.index[::7], "size"] = None
    data = TabularDataBunch.from_df(FOLDER, frame, "kind", valid_idx=list(range(n, len(frame))), bs=16, val_bs=10,
                                    seed=1, device="cpu")  # fmt: skip
    data.add_tfm(lambda batch: ((batch[0][0], batch[0][1].double()), batch[1]))
    learn = tabular_learner(data, layers=[8], use_bn=False, metrics=[accuracy], opt_func=SGD)
    learn.model.double()
    return learn


def vision(n: int) -> Learner:
    import torchvision

    body = torchvision.models.squeezenet1_1(weights=None)  # without BatchNorm, which differs by process
    body.classifier[0].p = 0.0
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2))
    valid = images(9, 32)
    data = TensorDataBunch.from_arrays(*images(n, 32), valid=valid, bs=8, val_bs=5, seed=1, classes=["dark", "bright"],
                                       device="cpu")  # fmt: skip
    return vision_learner(data, body, custom_head=head, metrics=[accuracy], opt_func=SGD)


# --- training options


class Averaged(torch.optim.SGD):
    """Validates with the mean of its weights, as schedule-free optimizers do."""

    def _swap(self, trains: bool) -> None:
        for group in self.param_groups:
            if group.get("trains", trains) != trains:
                for p in group["params"]:
                    if "mean" in self.state[p]:
                        kept = p.detach().clone()
                        p.data.copy_(self.state[p]["mean"])
                        self.state[p]["mean"] = kept
            group["trains"] = trains

    def train(self) -> None:
        self._swap(True)

    def eval(self) -> None:
        self._swap(False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step()
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for p in group["params"]:
                self.state[p].setdefault("mean", p.detach().clone()).lerp_(p, 1 / group["k"])


def same_in_a_batch(n: int) -> list[Any]:
    """Batches of one sample each, many times, so that a mixture of two is the sample again."""
    x, y = samples(n)
    return [(x[i].expand(k, 6), y[i].expand(k)) for i, k in enumerate((7, 16, 1, 5))]


def interpreted(n: int) -> dict:
    set_seed(3)
    learn = Learner(image_data(n), pooled(), SGD, metrics=[accuracy, AUROC(), FBeta()], silent=True)
    learn.fit(1, 0.05)
    interpretation = learn.interpret()
    preds, targets, losses = learn.get_preds(with_loss=True)
    mixed, _ = learn.TTA()
    other = learn.validate(arrays_of_images(n))
    return {
        "confusion": torch.as_tensor(interpretation.confusion_matrix()),
        "top": interpretation.top_losses(7)[0],
        "indices": interpretation.top_losses(7)[1],
        "preds": (preds, targets, losses),
        "some": learn.get_preds(n_batch=2)[0],
        "batch": learn.pred_batch(),
        "tta": mixed,
        "of tta": learn.interpret(tta=True).preds,
        "validated": learn.validate(),
        "other": other,
        "other metrics": learn.validate(metrics=[accuracy]),
        "one": learn.predict(images(3)[0][0])[2],
        "checked": [finding.what for finding in learn.check().findings],
        "after": learn.validate(),
    }


def arrays_of_images(n: int) -> list[Any]:
    x, y = images(n)
    return [(x[i : i + 9].float() / 255, y[i : i + 9]) for i in range(0, n, 9)]


def lbfgs(n: int) -> dict:
    def fit() -> None:
        set_seed(3)
        learn = learner(arrays(n), opt_func=torch.optim.LBFGS, silent=True)
        learn.fit(1, 0.1)

    return refused(fit, "LBFGS", "use another optimizer")


def saved_by_callbacks(n: int) -> dict:
    def fit(learn: Learner) -> None:
        callbacks = [
            SaveModelCallback(monitor="accuracy", name=f"best{n}"),
            EarlyStoppingCallback(monitor="valid_loss", patience=1, min_delta=0.05),
            ReduceLROnPlateauCallback(monitor="valid_loss", patience=0, min_delta=0.05),
        ]
        learn.fit(4, 0.05, callbacks=callbacks)

    return trained(lambda: learner(arrays(n), metrics=[accuracy, ConfusionMatrix()]), fit)


def fine_tuned(learn: Learner) -> None:
    learn.fine_tune(1, 0.02)


def fitted_in_groups(learn: Learner) -> None:
    learn.freeze()
    learn.fit_one_cycle(1, slice(1e-3, 1e-1))
    learn.unfreeze()
    learn.fit(1, [1e-3, 1e-2])


def grouped(n: int) -> Learner:
    return learner(arrays(n)).split(lambda model: [model[2]])


CHANGES = {"epoch": 1, "n_epochs": 4, "on_nan": "ignore"}


def decision(event: str, name: str) -> Callback:
    """A callback that returns a change once, in the last process only."""
    is_done = RANK < SIZE - 1

    def method(self, epoch, last_metrics=None):
        nonlocal is_done
        if is_done or (epoch != 1 and event != "on_train_begin"):
            return None
        is_done = True
        more = [value + 1 for value in last_metrics or []]
        return {name: more if name == "last_metrics" else CHANGES.get(name, True)}

    return type("Decision", (Callback,), {event: method})()


def decided_by_one(n: int) -> dict:
    """What a run is like where one process stops or skips something, by each event and field."""
    outcomes = {}
    for event, spec in EVENTS.items():
        for name in spec.may_return:
            if name.startswith("last_") and name != "last_metrics":
                continue  # each process has a share of its own
            set_seed(3)
            learn = learner(arrays(n, bs=20), silent=True, callbacks=[decision(event, name)])
            recorder = learn.fit(3, 0.05)
            outcomes[f"{event}, {name}"] = {
                "weights": dict(learn.model.state_dict()),
                "losses": recorder.raw_losses,
                "metrics": recorder.metrics,
                "rows": [row[:-1] for row in recorder.rows],
            }
    return outcomes


class Rarely(nn.Module):
    """Uses a parameter for some samples only, so that it gets a gradient in some batches and processes only."""

    def __init__(self, n: int):
        super().__init__()
        self.body, self.more = network(), nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.least = samples(n)[0][:, 0].topk(4).values[-1].item()  # three samples of the training set

    def forward(self, x):
        chosen = x[:, 0] > self.least
        output = self.body(x)
        return torch.where(chosen[:, None], output * self.more, output) if chosen.any() else output


NUMBERS = (63, 64, 65, 129)
FEATURES: dict[str, Callable[[int], dict]] = {
    "loss of the model, classes": lambda n: trained(lambda: own_loss(n, "class")),
    "loss of the model, numbers": lambda n: trained(lambda: own_loss(n, "number", Output)),
    "loss of the model, tokens": lambda n: trained(lambda: own_loss(n, "token", Output)),
    "loss of the model, next token": lambda n: trained(lambda: own_loss(n, "next")),
    "loss of the model, accumulated and clipped": lambda n: trained(
        lambda: own_loss(n, "token", callback_fns=[partial(AccumulateScheduler, n_step=3)]).clip_grad(0.1)
    ),
    "two arguments": lambda n: trained(
        lambda: learner(DataBunch(*both(as_parts, n, shuffle=True), device="cpu"), OfParts(), **CROSS_ENTROPY)
    ),
    "dict, named target": lambda n: trained(
        lambda: learner(
            DataBunch(
                *both(Dicts, n, shuffle=True), device="cpu", target="wanted", dl_tfms=[lambda b: (without(b[0]), b[1])]
            ),
            OfParts(),
            **CROSS_ENTROPY,
        )
    ),
    "dict, two targets": lambda n: trained(
        lambda: learner(
            DataBunch(*both(Dicts, n, shuffle=True), device="cpu", target=("wanted", "weight")), OfParts(),
            loss_func=several_targets, metrics=[],
        )
    ),
    "objects": lambda n: trained(
        lambda: learner(
            DataBunch(*both(Dicts, n, shuffle=True, collate_fn=as_graphs), device="cpu"), OfParts(), **CROSS_ENTROPY
        )
    ),
    "batch_fn of a DataLoader": lambda n: trained(
        lambda: learner(DataBunch(*both(Dicts, n, shuffle=True), device="cpu", batch_fn=of_dict), OfParts(),
                        **CROSS_ENTROPY)
    ),
    "batch_fn of objects in a list": lambda n: trained(
        lambda: learner(
            DataBunch(*(batches_of(k, lambda b: Graphs(*halves(b)[0], b[1])) for k in (n, 20)), device="cpu",
                      batch_fn=lambda batch: ((batch.a, batch.b), batch.y)), OfParts(), **CROSS_ENTROPY,
        )
    ),
    "batch_fn of arrays": lambda n: trained(
        lambda: learner(arrays(n), OfParts(), batch_fn=halves, **CROSS_ENTROPY)
    ),
    "weights of samples": lambda n: trained(
        lambda: learner(DataBunch(*both(Dicts, n, shuffle=True), device="cpu", batch_fn=with_weights), OfParts(),
                        loss_func=weighted, metrics=[])
    ),
    "stream of this process": trained_on_stream,
    "stream of all": lambda n: refused(lambda: trained(lambda: stream(n, False), find=False), "IterableDataset"),
    "WeightedRandomSampler": lambda n: trained(
        lambda: by_sampler(n, lambda n: WeightedRandomSampler(weights_of(n), n))
    ),
    "WeightedRandomSampler, own generator": lambda n: trained(
        lambda: by_sampler(
            n, lambda n: WeightedRandomSampler(weights_of(n), 50, generator=torch.Generator().manual_seed(4))
        )
    ),
    "WeightedRandomSampler in create": lambda n: trained(
        lambda: learner(
            DataBunch.create(pairs(n), pairs(20), bs=16, sampler=WeightedRandomSampler(weights_of(n), n), device="cpu",
                             classes=["a", "b", "c"])
        )
    ),
    "create": lambda n: trained(
        lambda: learner(DataBunch.create(pairs(n), pairs(20), bs=16, device="cpu", classes=["a", "b", "c"]))
    ),
    "create with a seed": lambda n: trained(
        lambda: learner(DataBunch.create(pairs(n), pairs(20), bs=16, device="cpu", classes=["a", "b", "c"], seed=5))
    ),
    "SubsetRandomSampler": lambda n: trained(lambda: by_sampler(n, lambda n: SubsetRandomSampler(range(0, n, 2)))),
    "RandomSampler with replacement": lambda n: trained(
        lambda: by_sampler(n, lambda n: RandomSampler(range(n), replacement=True, num_samples=45))
    ),
    "own sampler": lambda n: trained(lambda: by_sampler(n, Rotated)),
    "batches as samples": lambda n: trained(
        lambda: learner(
            DataBunch(DataLoader(Batches(n), batch_size=None, shuffle=True), DataLoader(Batches(20), batch_size=None),
                      device="cpu"), **CROSS_ENTROPY,
        )
    ),
    "sampler of batches": lambda n: trained(
        lambda: learner(
            DataBunch(DataLoader(pairs(n), batch_size=None, sampler=BatchSampler(Rotated(n), 16, False)),
                      DataLoader(pairs(20), 7), device="cpu"), **CROSS_ENTROPY,
        )
    ),
    "several arrays": lambda n: trained(
        lambda: learner(
            TensorDataBunch.from_arrays(*halves(samples(n)), valid=halves(samples(20)), bs=16, val_bs=7, seed=1,
                                        device="cpu", dtype=torch.float64), OfParts()
        )
    ),
    "segmentation": lambda n: trained(lambda: segmentation(n // 2)),
    "table": lambda n: trained(lambda: table(n)),
    "images": lambda n: trained(lambda: learner(image_data(n), pooled(), metrics=[accuracy, AUROC()])),
    "fine_tune": lambda n: trained(lambda: grouped(n), fine_tuned),
    "layer groups": lambda n: trained(lambda: grouped(n), fitted_in_groups),
    "vision_learner": lambda n: rounded(trained(lambda: vision(n // 4), fine_tuned), "single"),
    "mixup": lambda n: trained(
        lambda: learner(DataBunch(same_in_a_batch(n), batches_of(20), device="cpu"), **CROSS_ENTROPY).mixup(0.4),
        random=False,
    ),
    "mixup, label smoothing": lambda n: trained(
        lambda: learner(DataBunch(same_in_a_batch(n), batches_of(20), device="cpu"),
                        loss_func=LabelSmoothingCrossEntropy()).mixup(0.4),
        random=False,
    ),
    "label smoothing and class weights": lambda n: trained(
        lambda: learner(
            arrays(n), loss_func=nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 5.0]).double(), label_smoothing=0.1)
        )
    ),
    "class weights, accumulated": lambda n: trained(
        lambda: learner(
            arrays(n, bs=10), loss_func=nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 5.0]).double()),
            callback_fns=[partial(AccumulateScheduler, n_step=3)],
        )
    ),
    "clipping": lambda n: trained(lambda: learner(arrays(n)).clip_grad(0.05)),
    "bf16": lambda n: rounded(trained(lambda: learner(arrays(n, dtype=torch.float32), network().float()).to_bf16())),
    "fp16": lambda n: rounded(trained(lambda: learner(arrays(n, dtype=torch.float32), network().float()).to_fp16())),
    "fp16, accumulated and clipped": lambda n: rounded(
        trained(
            lambda: learner(
                arrays(n, dtype=torch.float32), network().float(), callback_fns=[partial(AccumulateScheduler, n_step=2)]
            ).to_fp16().clip_grad(0.5)
        )
    ),
    "EMA, accumulated": lambda n: trained(
        lambda: learner(
            arrays(n), callback_fns=[partial(EMACallback, decay=0.8), partial(AccumulateScheduler, n_step=2)]
        )
    ),
    "optimizer with modes": lambda n: trained(
        lambda: learner(arrays(n), opt_func=Averaged, wd=0.0), lambda learn: learn.fit(2, 0.05)
    ),
    "LBFGS": lbfgs,
    "parameter of some processes": lambda n: trained(lambda: learner(arrays(n), Rarely(n))),
    "parameter of some processes, accumulated": lambda n: trained(
        lambda: learner(arrays(n, bs=8), Rarely(n), callback_fns=[partial(AccumulateScheduler, n_step=3)])
    ),
    "decisions of one process": decided_by_one,
    "callbacks that watch metrics": saved_by_callbacks,
    "predictions": interpreted,
}  # fmt: skip


def without(inputs: dict) -> dict:
    return {name: inputs[name] for name in ("a", "b")}


def rounded(outcome: dict, precision: str = "half") -> dict:
    """Under a name that says how exact the numbers are."""
    return {
        f"{precision} precision": {
            name: outcome[name] for name in ("weights", "losses", "val_losses", "preds", "found")
        }
    }


ONCE = ("decisions of one process", "vision_learner", "LBFGS")  # long, or the same for any number
CASES = {  # each kind at two numbers: over all kinds, each number is as frequent
    f"{name}, {n} samples": partial(case, n)
    for i, (name, case) in enumerate(FEATURES.items())
    for n in ((NUMBERS[i % 4], NUMBERS[(i + 1 + i // 4 % 3) % 4]) if name not in ONCE else NUMBERS[:1])
}


def main(folder: Path) -> None:
    global FOLDER
    FOLDER = folder / f"features{SIZE}"
    torch.save({name: case() for name, case in CASES.items()}, folder / f"features_{SIZE}_{RANK}.pt")
