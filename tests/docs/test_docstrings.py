"""What the documentation says is true: its examples run, each public name has a sentence and a page."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import re
import shutil
import subprocess
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


# --- pages

ROOT = PACKAGE.parent
REFERENCE = {page.name: page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md"))}
MKDOCS = shutil.which("mkdocs")


def test_each_public_name_stands_on_one_page_of_the_reference():
    standing = [
        name for text in REFERENCE.values() for name in re.findall(r"^::: minifast\.(\S+)$", text, re.MULTILINE)
    ]
    assert sorted(standing) == sorted(minifast.__all__)


def test_the_page_of_the_learner_has_all_of_its_methods():
    methods = {name for name in dir(minifast.Learner) if not name.startswith("_")}
    methods -= {name for name in methods if not callable(getattr(minifast.Learner, name))}
    assert set(re.findall(r"^        - (\w+)$", REFERENCE["learner.md"], re.MULTILINE)) == methods


def test_each_page_is_in_the_table_of_contents():
    contents = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"[\w/]+\.md", contents)) == pages


@pytest.mark.slow
@pytest.mark.skipif(MKDOCS is None, reason="mkdocs is not installed: python -m pip install 'minifast[docs]'")
def test_the_pages_are_built_without_a_warning(tmp_path):
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # it is about mkdocs, not about these pages
    command = [MKDOCS, "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = {
        page.stem: tmp_path / "reference" / page.stem / "index.html" for page in (ROOT / "docs/reference").iterdir()
    }
    shown = {name: page.read_text() for name, page in pages.items()}
    assert all(f'id="minifast.{name}"' in "".join(shown.values()) for name in minifast.__all__)
    assert [name for name, html in shown.items() if "&gt;&gt;&gt;</p>" in html or "<p>&gt;&gt;&gt;" in html] == []
    assert 'id="minifast.EarlyStoppingCallback.on_epoch_end"' not in shown["watching"]
    assert 'id="minifast.Callback.on_epoch_end"' in shown["callbacks"]
    assert not (tmp_path / "examples.py").exists()
