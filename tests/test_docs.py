"""What the documentation says is true: its examples are run, and every public name has a sentence to itself."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import minifast

PACKAGE = Path(minifast.__file__).parent
MODULES = sorted(
    ".".join(("minifast", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
    if file.name != "__main__.py"
)
DESCRIBED = [name for name in minifast.__all__ if inspect.isroutine(o := getattr(minifast, name)) or inspect.isclass(o)]

SENTENCE = re.compile(r"[A-Z0-9`].*[.:?!)`]", re.DOTALL)


def first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


# --- docstrings


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_do_what_they_show(name, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    module = importlib.import_module(name)
    said: list[str] = []
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert list(here.iterdir()) == []


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in MODULES]
    examples = sum(len(test.examples) for module in modules for test in finder.find(module))
    assert examples > 50


@pytest.mark.parametrize("name", MODULES)
def test_a_module_begins_with_a_sentence(name):
    assert SENTENCE.fullmatch(first_line(importlib.import_module(name)))


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_public_name_has_a_sentence_of_its_own(name):
    thing = getattr(minifast, name)
    assert thing.__doc__, f"{name} has no docstring"
    assert SENTENCE.fullmatch(first_line(thing)), first_line(thing)


@pytest.mark.parametrize("name", [name for name in DESCRIBED if inspect.isclass(getattr(minifast, name))])
def test_the_methods_of_a_public_class_have_a_sentence_each(name):
    methods = {
        f"{name}.{key}": value
        for key, value in vars(getattr(minifast, name)).items()
        if not key.startswith("_") and (inspect.isfunction(value) or isinstance(value, (property, classmethod)))
    }
    assert {key: first_line(value) for key, value in methods.items() if not SENTENCE.fullmatch(first_line(value))} == {}
