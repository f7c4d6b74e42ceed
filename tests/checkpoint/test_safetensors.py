"""`save` and `load` of weights in the format of safetensors, and of state dicts that other programs wrote."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import slow, toy_data, toy_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minifast import DataError, FileFormatError, Learner, MinifastError, SaveModelCallback
from minifast.utils import files

safetensors = pytest.importorskip("safetensors.torch")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2]
SHAPES = st.lists(st.integers(0, 4), max_size=4)


@st.composite
def tensors(draw) -> torch.Tensor:
    """Tensors of all dtypes, shapes and memory layouts."""
    shape = draw(SHAPES)
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    value = (torch.rand([*shape, 2], generator=generator) * 9).to(dtype)[..., 0]  # every second number in memory
    layout = draw(st.sampled_from(["strided", "contiguous", "transposed", "channels last"]))
    if layout == "contiguous":
        value = value.contiguous()
    if layout == "transposed" and len(shape) > 1:
        value = value.transpose(0, 1)
    if layout == "channels last" and len(shape) == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    return value


@pytest.mark.parametrize("n_examples", [40, *slow(150)])
def test_all_tensors_come_back_with_their_names(n_examples, tmp_path):
    file = tmp_path / "all.safetensors"

    @settings(max_examples=n_examples, deadline=None)
    @given(values=st.lists(tensors(), min_size=1, max_size=5), data=st.data())
    def check(values, data):
        state = {f"layer.{i}": value for i, value in enumerate(values)}
        for i in range(data.draw(st.integers(0, 3))):  # other names of a tensor, views and parts of its memory
            value = data.draw(st.sampled_from(values))
            kinds = {
                "same": lambda v: v,
                "rows": lambda v: v[1:] if v.ndim else v,
                "turned": lambda v: v.movedim(0, -1) if v.ndim else v,
            }
            kind = data.draw(st.sampled_from(sorted(kinds)))
            state[f"{data.draw(st.sampled_from('az'))}.{i}"] = kinds[kind](value)
        files.write(state, file)
        found = files.read(file)
        assert set(found) == set(state)
        for name, value in state.items():
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
            assert found[name].tolist() == value.tolist()

    check()


class Tied(nn.Module):
    """A language model whose last layer has the weights of the first, with a buffer and a convolution."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.first = nn.Embedding(5, 3)
        self.conv = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 5, bias=False)
        if tie:
            self.last.weight = self.first.weight
        self.register_buffer("mask", torch.rand(2, 2) < 0.5)

    def forward(self, x):
        return self.last(self.norm(self.first(x[:, 0].long())))


def learner(model: nn.Module, path: Path, **arguments) -> Learner:
    return Learner(toy_data(), model, path=path, silent=True, **arguments)


def equal(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_tied_weights_buffers_and_layouts_come_back(tmp_path):
    learn, fresh, loose = (learner(Tied(tie), tmp_path) for tie in (True, True, False))
    learn.model.norm.running_mean.add_(1)
    file = learn.save("tied.safetensors", return_path=True)
    assert file == tmp_path / "models" / "tied.safetensors"
    assert [path.name for path in file.parent.iterdir()] == ["tied.safetensors"]
    assert "last.weight" not in safetensors.load_file(file)  # written once
    for other in (fresh, loose):
        assert not equal(other.model, learn.model)
        assert other.load("tied.safetensors") is other
        assert equal(other.model, learn.model)
    assert fresh.model.last.weight is fresh.model.first.weight
    assert fresh.model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    again = Tied()
    assert safetensors.load_model(again, file) == (set(), [])  # and for the package itself
    assert equal(again, learn.model)


def test_a_file_of_another_program_that_has_one_of_two_names_loads(tmp_path):
    model, learn = Tied(), learner(Tied(), tmp_path)
    for name in ("first.weight", "last.weight"):
        state = {key: value.contiguous() for key, value in model.state_dict().items() if key != name}
        safetensors.save_file(state, tmp_path / "other.safetensors")
        torch.save(state, tmp_path / "other.pth")
        for file in ("other.safetensors", "other.pth"):
            learn = learner(Tied(), tmp_path)
            learn.load(tmp_path / file)
            assert equal(learn.model, model)


def test_the_optimizer_stays_and_is_not_saved(tmp_path):
    learn = toy_learner(path=tmp_path)
    learn.fit(1, 1e-2)
    learn.save("m.safetensors")
    assert set(safetensors.load_file(tmp_path / "models" / "m.safetensors")) == set(learn.model.state_dict())
    with pytest.raises(ValueError, match=r"with_opt=True saves the state of the optimizer, but a .* to a \.pth file"):
        learn.save("m.safetensors", with_opt=True)
    saved = {name: value.clone() for name, value in learn.model.state_dict().items()}
    learn.fit(1, 1e-2)
    opt = learn.opt
    averages = [state["exp_avg"].clone() for state in opt.opt.state.values()]
    learn.load("m.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in learn.model.state_dict().items())
    assert learn.opt is opt
    assert averages
    assert all(map(torch.equal, averages, [state["exp_avg"] for state in opt.opt.state.values()]))
    with pytest.raises(MinifastError, match="holds no optimizer state; load it with with_opt=False"):
        learn.load("m.safetensors", with_opt=True)


def test_the_best_model_of_a_fit_is_saved_in_the_format(tmp_path):
    learn = toy_learner(path=tmp_path)
    learn.fit(2, 1e-2, callbacks=[SaveModelCallback(name="best.safetensors")])
    assert set(safetensors.load_file(tmp_path / "models" / "best.safetensors")) == set(learn.model.state_dict())


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (torch.zeros(2, dtype=torch.complex128), r"odd \(complex128\)"),
        (torch.zeros(2, 2).to_sparse(), r"odd \(float32, sparse_coo\)"),
        (torch.zeros(2, device="meta"), r"odd \(float32\)"),
        (3, r"odd \(int\)"),
    ],
)
def test_what_the_format_cannot_hold_is_named(tmp_path, value, named):
    file = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match=rf"A \.safetensors file cannot hold {named}; save to m\.pth instead"):
        files.write({"weight": torch.zeros(2), "odd": value}, file)
    assert not list(tmp_path.iterdir())


def test_extra_state_and_a_trained_loss_are_no_silent_loss(tmp_path):
    with pytest.raises(ValueError, match=r"cannot hold 0\._extra_state \(dict\); save to m\.pth"):
        learner(nn.Sequential(Extra(4, 2)), tmp_path).save("m.safetensors")

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, y):
            return self.scale * nn.functional.cross_entropy(output, y)

    learn = toy_learner(path=tmp_path, loss_func=Scaled())
    with pytest.raises(ValueError, match=r"The loss has trained parameters, but a \.safetensors file holds"):
        learn.save("m.safetensors")
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth"])
def test_weights_of_another_model_change_nothing(tmp_path, name):
    learn, other = toy_learner(path=tmp_path), learner(Tied(), tmp_path)
    other.save(name)
    before = {key: value.clone() for key, value in learn.model.state_dict().items()}
    with pytest.raises(DataError, match=rf"{name} belongs to another model than this learner's: .*first\.weight"):
        learn.load(name)
    assert all(torch.equal(value, before[key]) for key, value in learn.model.state_dict().items())


@pytest.mark.parametrize("step", ["save", "move"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, step, failure):
    learn = toy_learner(path=tmp_path)
    file = learn.save("m.safetensors", return_path=True)
    before, save_file = file.read_bytes(), safetensors.save_file

    def fail(*arguments):
        if step == "save":
            save_file(*arguments)
        raise failure

    monkeypatch.setattr(*((safetensors, "save_file") if step == "save" else (Path, "replace")), fail)
    learn.fit(1, 1e-2)
    with pytest.raises(type(failure)):
        learn.save("m.safetensors")
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_failure_of_the_package_is_an_error_of_the_system(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def fail(*_):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors, "save_file", fail)
    with pytest.raises(OSError, match="models cannot be written into: I/O error: No space left on device"):
        toy_learner(path=tmp_path).save("m.safetensors")


def test_the_file_has_the_permissions_of_others(tmp_path):
    before = os.umask(0o022)
    try:
        file = toy_learner(path=tmp_path).save("m.safetensors", return_path=True)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_damaged_file_and_a_missing_package_are_named(tmp_path, monkeypatch):
    learn = toy_learner(path=tmp_path)
    file = learn.save("m.safetensors", return_path=True)
    content = file.read_bytes()
    for length in (0, 5, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=r"m\.safetensors is damaged, or no safetensors file"):
            learn.load("m.safetensors")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none\.safetensors; its folder has m\."):
        learn.load("none.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    message = r"(?m)m\.safetensors needs the package safetensors: pip install safetensors$"
    with pytest.raises(ImportError, match=message):
        learn.load("m.safetensors")
    with pytest.raises(ImportError, match=message):
        learn.save("m.safetensors")
    with pytest.raises(ImportError, match=message):  # before the first epoch
        learn.fit(1, 1e-2, callbacks=[SaveModelCallback(name="m.safetensors")])
    assert not learn.history


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "state_dict": {"w": torch.zeros(2)}}, r"a dict with epoch, state_dict, not .*\['state_dict'\]"),
        ({"model": {"w": torch.zeros(2)}, "optimizer": {}}, r"a dict with model, optimizer, not .*\['model'\]"),
        ({"epoch": 3}, r"a dict with epoch, not a state dict of a model; save one with torch\.save"),
        ([torch.zeros(2)], r"a list, not a state dict of a model"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    learn = toy_learner(path=tmp_path)
    with pytest.raises(DataError, match=rf"other\.pth holds {message}"):
        learn.load(tmp_path / "other.pth")
