"""Objects of any class are searched for state, also of classes that do not say which module defines them."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import minifast
from minifast import Callback, DataBunch, Learner, TensorDataBunch, compare, simple_ann
from minifast.data.transforms import check_tfms
from minifast.utils.checks import module_name
from minifast.utils.walk import package_of, walk

FILES = sorted(Path(minifast.__file__).parent.rglob("*.py"))


class WithoutModule:
    __module__ = None  # type: ignore[assignment]

    def __call__(self, batch):
        return batch


class ModuleOfEach:
    """A class whose instances know their module."""

    @property
    def __module__(self):
        return "somewhere"

    def __call__(self, batch):
        return batch


VALUES = [np.random.normal, np.random.default_rng(0).normal, WithoutModule(), ModuleOfEach(), len, [].append]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_of_a_class_without_a_module_is_walked_through(value):
    assert isinstance(module_name(type(value)), str)
    assert isinstance(package_of(type(value)), str)
    assert any(node.value is value for node in walk({"values": [value]}))
    assert list(walk({"class": type(value)}))


@pytest.mark.parametrize("value", [WithoutModule(), ModuleOfEach()])
def test_transforms_and_callbacks_may_be_of_such_a_class(value):
    check_tfms([[value], [value]])

    class Watching(Callback):
        __module__ = value.__class__.__dict__["__module__"]

        def on_batch_begin(self, last_input):
            return None

    data = TensorDataBunch.from_arrays(np.random.rand(20, 3), np.arange(20) % 2, bs=4, device="cpu")
    Learner(data, simple_ann(3, 2), silent=True).fit(1, 1e-2, callbacks=[Watching()])


class Noisy(Dataset):
    def __init__(self):
        self.noise = np.random.normal

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.full((4,), self.noise()), torch.tensor(i % 2)


def noisy_learner(seed=0):
    torch.manual_seed(seed)
    data = DataBunch(DataLoader(Noisy(), 10), DataLoader(Noisy(), 10), device="cpu", loss_func=nn.CrossEntropyLoss())
    return Learner(data, simple_ann(4, 2, 8), silent=True)


def test_a_data_set_may_hold_a_function_of_numpy():
    learn = noisy_learner()
    learn.fit(1, 1e-2)
    learn.lr_find(num_it=10)
    compare(noisy_learner, {"a": 1e-2}, epochs=1, seeds=1, silent=True)


def test_no_code_takes_the_attribute_for_a_text():
    bad = [
        f"{file.name}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "__module__"
    ]
    assert not bad
