"""Copied, pickled and compiled learners: they train bit for bit like the original, and do not change it."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import sys
import warnings
from functools import partial

import pytest
import torch
from conftest import FailsAt, slow, toy_data, toy_items, toy_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

import minifast
from minifast import (
    Callback,
    CSVLogger,
    DataBunch,
    DataError,
    Learner,
    LearnerCallback,
    accuracy,
    add_metrics,
    callbacks,
    load_learner,
    simple_ann,
)

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda learn: pickle.loads(pickle.dumps(learn)),
    "two copies": lambda learn: copy.deepcopy(pickle.loads(pickle.dumps(learn))),
}
OPTIMIZERS = {
    "AdamW": minifast.training.AdamW,
    "SGD": partial(torch.optim.SGD, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
}
TRAININGS = {
    "nothing": lambda learn: None,
    "fit": lambda learn: learn.fit(1, 1e-2),
    "fit_one_cycle": lambda learn: learn.fit_one_cycle(1, 1e-2),
    "fit_schedule": lambda learn: learn.fit_schedule(1, minifast.one_cycle(1e-2)),
    "lr_find": lambda learn: learn.lr_find(num_it=4),
    "fp16": lambda learn: learn.to_fp16(2.0**20).fit(1, 1e-2),
    "mixup": lambda learn: learn.mixup().fit(1, 1e-2),
    "clip": lambda learn: learn.clip_grad(0.1).fit(1, 1e-2),
    "freeze": lambda learn: learn.split(lambda model: [model[3]]).freeze().fit(1, 1e-2),
    "validate": lambda learn: learn.validate(),
    "csv": lambda learn: learn.fit(1, 1e-2, callbacks=CSVLogger(learn)),
}


def outcome(learn: Learner) -> list:
    recorder, opt = learn.recorder, learn.opt
    state = opt.opt.state_dict()["state"].values() if opt else []
    moments = [value for values in state for value in values.values() if isinstance(value, torch.Tensor)]
    tensors = [*learn.model.state_dict().values(), *moments]
    return [[value.tolist() for value in tensors], recorder.lrs, list(recorder.raw_losses), recorder.val_losses]


def parts(learn: Learner) -> list:
    """Return what a copy must not share."""
    found = [learn, learn.data, learn.model, *learn.model.parameters(), *learn.callbacks, *learn.history]
    return [*found, *([] if learn.opt is None else [learn.opt, learn.opt.opt])]


@settings(deadline=None, max_examples=30)
@given(
    first=st.lists(st.sampled_from(sorted(TRAININGS)), max_size=3),
    second=st.sampled_from(["fit", "fit_one_cycle", "fit_schedule"]),
    way=st.sampled_from(sorted(COPIES)),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    shuffle=st.booleans(),
)
def test_a_copy_trains_like_the_original_and_apart_from_it(tmp_path_factory, first, second, way, optimizer, shuffle):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))
    data = toy_data(60, 20, shuffle=shuffle)
    path = tmp_path_factory.mktemp("copies")
    learn = Learner(data, model, OPTIMIZERS[optimizer], metrics=[accuracy], path=path, silent=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in first:
            TRAININGS[name](learn)
        copied = COPIES[way](learn)
        assert outcome(copied) == outcome(learn)
        assert not {id(part) for part in parts(learn)} & {id(part) for part in parts(copied)}
        before = outcome(learn)
        torch.manual_seed(1)
        TRAININGS[second](copied)
        assert outcome(learn) == before
        torch.manual_seed(1)
        TRAININGS[second](learn)
    assert outcome(copied) == outcome(learn)
    for callback in [copied.recorder, *copied.history, *copied.callbacks]:
        assert not isinstance(callback, LearnerCallback) or callback.learn is copied


def make_callbacks() -> dict:
    names = [name for name in callbacks.__all__ if isinstance(getattr(callbacks, name), type)]
    others = {"Callback", "LearnerCallback", "HookCallback", "LRFinder", "Recorder", "Scheduler", "TrainingPhase"}
    others |= {"RunLogger"}
    need_arguments = {"OneCycleScheduler", "ScheduledParameters", "GeneralScheduler", "TorchScheduler"}
    need_arguments |= {"LearningRateScheduler", "StopAfterNBatches", "Tracker", "TrackerCallback"}
    need_packages = {"TensorBoardCallback", "TensorBoard", "ShowGraph"}
    need_packages |= {"MLflowCallback", "OptunaPruningCallback", "WandbCallback"}
    skipped = others | need_arguments | need_packages
    return {name: getattr(callbacks, name) for name in names if name not in skipped}


@pytest.mark.parametrize("name", sorted(make_callbacks()))
@pytest.mark.parametrize("way", ["two copies", *slow("deepcopy", "pickle")])
def test_a_learner_with_a_callback_is_copied_after_a_fit(name, way, tmp_path) -> None:
    learn = toy_learner(path=tmp_path)
    learn.callbacks.append(make_callbacks()[name](learn))
    learn.fit(1, 1e-2)
    copied = COPIES[way](learn)
    for one in (learn, copied):
        torch.manual_seed(0)
        one.fit(1, 1e-2)
    assert outcome(copied) == outcome(learn)


SCHEDULERS = {
    "one_cycle": lambda learn: callbacks.OneCycleScheduler(learn, 1e-2),
    "phases": lambda learn: callbacks.GeneralScheduler(learn, [callbacks.TrainingPhase(3).schedule_hp("lr", 1e-2)]),
    "torch": lambda learn: callbacks.TorchScheduler(partial(torch.optim.lr_scheduler.StepLR, step_size=2)),
    "keras": lambda learn: callbacks.LearningRateScheduler(minifast.schedules.linear(1e-2, 1e-3)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("way", sorted(COPIES))
def test_a_learner_with_a_scheduler_is_copied_after_a_fit(name, way, tmp_path) -> None:
    learn = toy_learner(path=tmp_path)
    learn.callbacks.append(SCHEDULERS[name](learn))
    learn.fit(1, 1e-2)
    copied = COPIES[way](learn)
    for one in (learn, copied):
        torch.manual_seed(0)
        one.fit(1, 1e-2)
    assert outcome(copied) == outcome(learn)


@pytest.mark.parametrize("name", sorted(minifast.schedules.SCHEDULES))
def test_schedules_can_be_pickled(name) -> None:
    for schedule in minifast.schedules.SCHEDULES[name].of(1e-2).values():
        again = pickle.loads(pickle.dumps(schedule))
        assert [again(p / 10) for p in range(11)] == [schedule(p / 10) for p in range(11)]
    by_step = minifast.create_one_cycle_lr_schedule(1e-2, 10)
    assert pickle.loads(pickle.dumps(by_step))(4) == by_step(4)


class Holder(LearnerCallback):
    """Hold two more callbacks of a learner."""

    def __init__(self, learn):
        super().__init__(learn)
        self.helpers = [Helper(learn), Helper(learn)]

    def on_epoch_end(self):
        self.seen = [helper.learn.opt.lr for helper in self.helpers]


class Helper(LearnerCallback):
    pass


@pytest.mark.parametrize("way", sorted(COPIES))
def test_callbacks_inside_callbacks_belong_to_the_copy(way) -> None:
    learn = toy_learner()
    learn.callbacks.append(Holder(learn))
    copied = COPIES[way](learn)
    copied.fit(1, 1e-2)
    assert copied.callbacks[0].seen == [1e-2, 1e-2]
    assert all(helper.learn is copied for helper in copied.callbacks[0].helpers)
    assert all(helper.learn is learn for helper in learn.callbacks[0].helpers)
    learn.lr_find(num_it=4)


def test_a_shallow_copy_leaves_the_callbacks_to_the_original() -> None:
    learn = toy_learner().to_fp16()
    copied = copy.copy(learn)
    assert copied.model is learn.model
    assert learn.callbacks[0].learn is learn


def test_a_copied_callback_belongs_to_the_learner_that_trains_with_it(tmp_path) -> None:
    learn = toy_learner(path=tmp_path)
    callback = copy.deepcopy(minifast.SaveModel(learn))
    other = toy_learner(path=learn.path)
    other.fit(1, 1e-2, callbacks=callback)
    assert callback.learn is other


@pytest.mark.parametrize("name", ["recorder", "history", "model", "opt", "data"])
def test_parts_of_a_learner_can_be_pickled_after_a_fit(name) -> None:
    learn = toy_learner()
    learn.fit(1, 1e-2)
    learn.lr_find(num_it=4)
    assert pickle.loads(pickle.dumps(getattr(learn, name))) is not None


@pytest.mark.parametrize("way", ["two copies", *slow("deepcopy", "pickle")])
def test_a_learner_whose_workers_stay_is_copied_without_them(way) -> None:
    loader = DataLoader(toy_items(20), 10, num_workers=1, persistent_workers=True)
    learn = Learner(DataBunch(loader, device="cpu"), simple_ann(10, 2), silent=True)
    learn.fit(1)
    running = loader._iterator
    copied = COPIES[way](learn)
    assert running is not None
    assert loader._iterator is running
    copied.fit(1)
    learn.fit(1)
    assert copied.recorder.raw_losses == learn.recorder.raw_losses


def test_a_learner_can_be_pickled_during_a_fit() -> None:
    class Pickles(Callback):
        def on_batch_end(self):
            pickles.append(pickle.dumps(learn))

    learn, pickles = toy_learner(silent=False), []
    learn.fit(1, 1e-2, callbacks=Pickles())
    pickle.loads(pickles[1]).fit(1, 1e-2)


class CountsBatches(LearnerCallback):
    """A metric that is a callback of a learner."""

    def on_epoch_begin(self):
        self.n = 0

    def on_batch_end(self, train):
        self.n += not train

    def on_epoch_end(self, last_metrics):
        return add_metrics(last_metrics, self.n * len(self.learn.layer_groups))


def test_a_metric_may_be_a_learner_callback() -> None:
    learn = toy_learner(metrics=[CountsBatches()])
    learn.fit(1, 1e-2)
    n = len(learn.data.valid_dl)
    assert learn.recorder.metrics == [[n]]
    assert learn.validate()[1] == n
    assert learn.validate(metrics=[CountsBatches()])[1] == n


class StoresActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.stored = nn.Linear(10, 2), {}

    def forward(self, x):
        self.map = self.layer(x)
        self.stored["last"] = [self.map * 2]
        return self.map


NOT_LEAVES = {
    "activation": StoresActivation,
    "weight_norm": lambda: nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(10, 2))),
    "spectral_norm": lambda: nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(10, 2))),
    "prune": lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(10, 2), "weight", 0.3)),
    "parametrization": lambda: nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(10, 2))),
}


@pytest.mark.filterwarnings("ignore:`?torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize("name", ["activation", "parametrization", *slow("weight_norm", "spectral_norm", "prune")])
def test_models_that_store_tensors_with_a_graph_are_copied_and_exported(name, tmp_path) -> None:
    torch.manual_seed(0)
    learn = Learner(toy_data(), NOT_LEAVES[name](), path=tmp_path, silent=True)
    learn.fit(1, 1e-2)
    copied = copy.deepcopy(learn)
    for one in (learn, copied):
        torch.manual_seed(0)
        one.fit(1, 1e-2)
    assert outcome(copied) == outcome(learn)
    learn.export()
    x = torch.randn(10)
    assert torch.allclose(load_learner(tmp_path, device="cpu").predict(x)[2], learn.predict(x)[2], atol=1e-6)


# --- models of torch.compile


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def ann() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))


def compiled_layer() -> nn.Sequential:
    model = ann()
    model[0] = compiled(model[0])
    return model


MODELS = {
    "plain": ann,
    "compiled": lambda: compiled(ann()),
    "compiled layer": compiled_layer,
    "compiled twice": lambda: compiled(compiled_layer()),
}


PAIRS = list(itertools.product(MODELS, MODELS))
QUICK = [pair for pair in PAIRS if pair in zip(MODELS, [*MODELS][1:] + [*MODELS][:1], strict=True)]  # each name twice


@pytest.mark.parametrize(("saver", "loader"), [*QUICK, *slow(*(pair for pair in PAIRS if pair not in QUICK))])
def test_files_fit_compiled_and_other_models(saver, loader, tmp_path) -> None:
    saved = Learner(toy_data(), MODELS[saver](), path=tmp_path, silent=True)
    saved.fit(1, 1e-2)
    saved.save("a")
    loaded = Learner(toy_data(), MODELS[loader](), path=tmp_path, silent=True).load("a")
    assert list(torch.load(tmp_path / "models" / "a.pth")["model"]) == list(ann().state_dict())
    for learn in (saved, loaded):
        torch.manual_seed(0)
        learn.fit(1, 1e-2)
    assert outcome(saved) == outcome(loaded)
    with pytest.raises(OSError, match="gone"):
        Learner(toy_data(), MODELS[saver](), path=tmp_path, silent=True).fit(
            2, 1e-2, callbacks=FailsAt(4), checkpoint="run", every=1
        )
    resumed = Learner(toy_data(), MODELS[loader](), path=tmp_path, silent=True)
    resumed.fit(2, 1e-2, callbacks=FailsAt(None), checkpoint="run", every=1)
    uninterrupted = Learner(toy_data(), ann(), path=tmp_path, silent=True)
    uninterrupted.fit(2, 1e-2)
    assert outcome(resumed)[0] == outcome(uninterrupted)[0]


@pytest.mark.parametrize("name", ["compiled", "compiled twice", *slow("plain", "compiled layer")])
def test_a_compiled_model_is_still_compiled_and_has_plain_layers(name, tmp_path) -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    model = {"plain": ann, "compiled": lambda: torch.compile(ann(), backend=counter)}.get(name, MODELS[name])()
    learn = Learner(toy_data(), model, path=tmp_path, silent=True)
    assert learn.summary() == Learner(toy_data(), ann()).summary()
    torch._dynamo.reset()
    assert "_orig_mod" not in str(learn.check(4))
    learn.fit(1, 1e-2)
    assert (counter.frame_count > 0) == (name == "compiled")
    learn.export()
    x = torch.randn(10)
    assert torch.equal(load_learner(tmp_path, device="cpu").predict(x)[2], learn.predict(x)[2])


def test_a_model_compiled_later_keeps_its_names(tmp_path) -> None:
    learn = Learner(toy_data(), ann(), path=tmp_path, silent=True)
    learn.fit(1, 1e-2)
    before = learn.model
    learn.model = compiled(learn.model)
    learn.fit(1, 1e-2)
    assert learn.model is before
    learn.model[0] = compiled(learn.model[0])
    learn.save("b")
    assert list(torch.load(tmp_path / "models" / "b.pth")["model"]) == list(ann().state_dict())


def test_weights_of_a_compiled_model_saved_by_torch_are_loaded(tmp_path) -> None:
    torch.save(compiled(ann()).state_dict(), tmp_path / "weights.pt")
    learn = Learner(toy_data(), simple_ann(10, 2, 8), path=tmp_path)
    with pytest.raises(DataError, match="belongs to another model"):
        learn.load(tmp_path / "weights.pt")
    learn = Learner(toy_data(), ann(), path=tmp_path).load(tmp_path / "weights.pt")
    assert torch.equal(learn.model[0].weight, ann()[0].weight)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, while compiling
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])),
        pytest.param(
            nn.functional.cross_entropy,
            marks=pytest.mark.skipif(TORCH < (2, 7), reason="torch 2.6 cannot wrap its own functions in torch.compile"),
        ),
        nn.CrossEntropyLoss(),
    ],
)
@pytest.mark.slow
def test_a_compiled_loss_is_known_like_the_loss_itself(loss, tmp_path) -> None:
    plain = toy_learner(loss_func=loss, path=tmp_path / "a")
    learn = toy_learner(loss_func=torch.compile(loss, backend="eager"), path=tmp_path / "b")
    for one in (plain, learn):
        one.fit(1, 1e-2)
        one.export()
    assert torch.equal(learn.get_preds()[0], plain.get_preds()[0])
    assert torch.equal(learn.get_preds(with_loss=True)[2], plain.get_preds(with_loss=True)[2])
    assert learn.validate() == plain.validate()
    assert str(learn.check(4)) == str(plain.check(4))
    exported = [load_learner(tmp_path / name, device="cpu").loss_func for name in "ab"]
    assert str(exported[0]) == str(exported[1])


def test_layer_groups_may_be_compiled() -> None:
    model = compiled_layer()
    learn = Learner(toy_data(), model, layer_groups=[model[0], model[2]], silent=True).freeze()
    learn.fit(1, 1e-2)
    whole = compiled(ann())
    assert Learner(toy_data(), whole, layer_groups=[whole]).layer_groups == [whole._orig_mod]


# --- paths of files to load


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights", "weights.v1.bin", "folder/weights.pt"])
@pytest.mark.parametrize("way", ["absolute", "as text", "from the current folder", "from the model folder"])
def test_load_takes_the_path_of_any_file(name, way, tmp_path, monkeypatch) -> None:
    learn = Learner(toy_data(), ann(), path=tmp_path / "run")
    folder = tmp_path / "run" / "models" if way == "from the model folder" else tmp_path
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    expected = {key: value + 1 for key, value in ann().state_dict().items()}
    torch.save(expected, folder / name)
    learn.load({"absolute": folder / name, "as text": str(folder / name)}.get(way, name))
    assert all(torch.equal(value, expected[key]) for key, value in learn.model.state_dict().items())


def test_a_saved_name_comes_before_other_files(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    learn = Learner(toy_data(), ann(), path=tmp_path)
    learn.save("weights.pt")
    torch.save({}, tmp_path / "weights.pt")
    learn.load("weights.pt")
    with pytest.raises(FileNotFoundError, match=r"There is no file /no/such/weights\.pt;"):
        learn.load("/no/such/weights.pt")


# --- output


class Tee:
    """A replacement of stdout with two methods only."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


class OnlyWrites:
    write, text = Tee.write, ""


class Closed(io.StringIO):
    def isatty(self) -> bool:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("stream", [Tee, OnlyWrites, Closed, lambda: None])
def test_a_replaced_stdout_gets_plain_lines(stream, monkeypatch) -> None:
    out = stream()
    data = DataBunch([(torch.randn(8, 4), torch.randint(2, (8,)))] * 2, device="cpu", classes=["a", "b"])
    learn = Learner(data, simple_ann(4, 2))
    monkeypatch.setattr(sys, "stdout", out)
    learn.fit(1, 1e-2)
    learn.lr_find(num_it=4)
    text = getattr(out, "text", None) or (out.getvalue() if isinstance(out, io.StringIO) else "")
    assert out is None or "train_loss" in text
