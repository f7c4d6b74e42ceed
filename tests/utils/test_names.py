"""An unknown name of a public module raises an error with the name that was meant, however it is asked for."""

from __future__ import annotations

import importlib
import pickle
import re
from inspect import isfunction
from pathlib import Path

import pytest
from conftest import toy_learner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import minifast
from minifast import DeviceDataLoader, LearnerCallback
from minifast.utils.checks import closest

PAGES = sorted((Path(__file__).parents[2] / "docs" / "reference").glob("*.md"))
NAMED = {name for page in PAGES for name in re.findall(r"^`(minifast\.\w+)`", page.read_text("utf-8"), re.M)}
MODULES = sorted({"minifast", *NAMED} - {"minifast.cli"})  # a command, not a module to use


def public_names(module) -> list[str]:
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    return [name for name in names if len(name) > 3 and not name.startswith("_")]


def test_the_reference_names_the_public_modules():
    assert {"minifast.metrics", "minifast.schedules", "minifast.models", "minifast.errors", "minifast.losses"} <= NAMED


def error_of(module, word: str, kind: type[Exception]) -> str:
    """Ask for a name in one of the two ways, and return the text of the error."""
    with pytest.raises(kind) as caught:
        exec(f"from {module.__name__} import {word}" if kind is ImportError else f"module.{word}", {"module": module})
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("name", MODULES)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_a_misspelt_name_is_answered_with_the_near_one(name, data):
    module = importlib.import_module(name)
    meant = data.draw(st.sampled_from(public_names(module)))
    at = data.draw(st.integers(1, len(meant) - 1))
    word = data.draw(st.sampled_from([meant[:at] + meant[at + 1 :], f"{meant[:at]}{meant[at]}{meant[at:]}"]))
    if word in dir(module) or hasattr(module, word):
        return
    said = error_of(module, word, AttributeError)
    assert error_of(module, word, ImportError) == said
    suggested = re.search(rf"^{name} has no (?:attribute|model) '{word}'\. Did you mean (\w+)\?$", said)[1]
    assert hasattr(module, suggested)
    assert suggested in (closest(word, [meant, suggested]), closest(word, [suggested, meant]))  # both may be as close


@pytest.mark.parametrize("name", MODULES)
def test_a_name_like_no_other_has_no_suggestion(name):
    module = importlib.import_module(name)
    said = error_of(module, "qqqqzzzz", AttributeError)
    assert said == error_of(module, "qqqqzzzz", ImportError)
    assert said.endswith("'qqqqzzzz'.")
    assert not hasattr(module, "__qqqqzzzz__")
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from {name} import _qqqqzzzz")


def test_a_submodule_is_still_found():
    exec("from minifast.schedules import shapes; from minifast import losses; from minifast.data.images import listing")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("minifast.metric")
    assert minifast.metrics.accuracy


PASSING = {  # of each class that passes attribute access on, an object
    "Recorder": lambda learn: learn.recorder,
    "LearnerCallback": LearnerCallback,
    "DeviceDataLoader": lambda learn: learn.data.valid_dl,
}


def test_every_class_that_passes_attribute_access_on_is_tried_here():
    classes = [value for name in minifast.__all__ if isinstance(value := getattr(minifast, name), type)]
    ways = [cls.__getattr__ for cls in (*classes, DeviceDataLoader) if isfunction(getattr(cls, "__getattr__", None))]
    tried = {type(make(toy_learner())).__getattr__ for make in PASSING.values()}
    assert len(ways) > 10
    assert set(ways) - {nn.Module.__getattr__} == tried


@pytest.mark.parametrize("kind", PASSING)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_misspelled_attribute_that_is_passed_on_names_the_class_and_the_near_name(kind, data):
    learn = toy_learner()
    owner = PASSING[kind](learn)
    own = sorted(name for name in dir(owner) if len(name) > 5 and not name.startswith("_"))
    name = data.draw(st.sampled_from(own))
    place = data.draw(st.integers(3, len(name) - 1))
    wrong = name[:place] + name[place + 1 :]
    assume(not hasattr(owner, wrong))
    with pytest.raises(AttributeError, match=rf"^{kind} has no attribute '{wrong}'\. Did you mean \w+\?$") as error:
        getattr(owner, wrong)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_an_attribute_that_fails_itself_keeps_its_error():
    class Failing(LearnerCallback):
        @property
        def share(self):
            return self.learn.recorder.plot_loss

    learn = toy_learner()
    with pytest.raises(AttributeError, match=r"^Recorder has no attribute 'plot_loss'\. Did you mean plot_losses\?$"):
        _ = Failing(learn).share
    assert not hasattr(learn.recorder, "_repr_markdown_")
