"""Docstrings and the site: examples run, each public name has a sentence and a page, search finds what people type."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import slow

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

LONG = ["minifast.export.graph", "minifast.vision.body", "minifast.vision.transfer"]


@pytest.mark.parametrize("name", [*(name for name in MODULES if name not in LONG), *slow(*LONG)])
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


# --- pages of the site

ROOT = PACKAGE.parent
DOCS = ROOT / "docs"
REFERENCE = {page.stem: page.read_text() for page in sorted((DOCS / "reference").glob("*.md"))}
ENTRIES = [path for text in REFERENCE.values() for path in re.findall(r"^::: minifast\.(\S+)$", text, re.MULTILINE)]
ALIASES = {
    alias: name
    for text in REFERENCE.values()
    for alias, name in re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", text, re.MULTILINE)
}
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
MKDOCS = shutil.which("mkdocs")


def test_each_public_name_stands_on_one_page_of_the_reference():
    public = set(minifast.__all__) - set(PACKAGES)
    for package in PACKAGES:
        public |= set(getattr(importlib.import_module(f"minifast.{package}"), "__all__", []))
    names = [path.rpartition(".")[2] for path in ENTRIES]
    assert [name for name in set(names) if names.count(name) > 1] == []
    assert public - set(names) - set(ALIASES) == set()


def test_each_alias_of_the_reference_is_the_object_that_it_says():
    objects = {
        path.rpartition(".")[2]: importlib.import_module(f"minifast.{path.rpartition('.')[0]}".rstrip("."))
        for path in ENTRIES
    }
    for alias, name in ALIASES.items():
        other, own = (getattr(objects[name], each) for each in (alias, name))
        assert other is own or inspect.unwrap(other) is inspect.unwrap(own), alias


def test_each_entry_of_the_reference_is_importable_from_where_it_says():
    for path in ENTRIES:
        package, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(f"minifast.{package}".rstrip(".")), name), path
        is_module = (PACKAGE / path.replace(".", "/")).with_suffix(".py").exists()
        assert not is_module or path == "models", f"{path} is a module for the site; write {path}.{name}"


def test_the_page_of_the_learner_has_all_of_its_methods():
    methods = {name for name in dir(minifast.Learner) if not name.startswith("_")}
    methods -= {name for name in methods if not callable(getattr(minifast.Learner, name))}
    assert set(re.findall(r"^        - (\w+)$", REFERENCE["learner"], re.MULTILINE)) == methods


def test_each_page_is_in_the_table_of_contents():
    contents = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert set(re.findall(r"[\w/]+\.md", contents)) == pages | {"explanation/benchmarks.md"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    if MKDOCS is None:
        pytest.skip("mkdocs is not installed: python -m pip install 'minifast[docs]'")
    folder = tmp_path_factory.mktemp("site")
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # it is about mkdocs, not about these pages
    command = [MKDOCS, "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


@pytest.mark.slow
def test_the_site_shows_each_public_name_and_each_notebook(site):
    shown = {name: (site / "reference" / name / "index.html") for name in REFERENCE if name != "index"}
    text = {name: page.read_text() for name, page in shown.items()}
    everything = "".join(text.values())
    assert [path for path in ENTRIES if f'id="minifast.{path}"' not in everything] == []
    assert [name for name, html in text.items() if "&gt;&gt;&gt;</p>" in html or "<p>&gt;&gt;&gt;" in html] == []
    assert 'id="minifast.callbacks.EarlyStoppingCallback.on_epoch_end"' not in text["callbacks"]
    assert 'id="minifast.callbacks.Callback.on_epoch_end"' in text["callbacks"]
    assert not list(site.rglob("*.py"))
    home = (site / "index.html").read_text()  # its links to files outside of docs lead to their pages
    linked = {"tutorials/01_one_cycle/", "explanation/benchmarks/", "images/one_cycle.png"}
    assert linked <= set(re.findall(r'(?:href|src)="([^"#]+)', home))
    for notebook in (ROOT / "nbs").glob("*.ipynb"):
        html = (site / "tutorials" / notebook.stem / "index.html").read_text()
        assert "data:image/png" in html or "jp-OutputArea" in html
        assert '.ipynb"' not in html


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("resume", "how_to/resume/"),
        ("mixed precision", "how_to/training_options/"),
        ("confusion matrix", "how_to/inspect_results/"),
        ("several GPUs", "how_to/several_gpus/"),
    ],
)
def test_search_finds_what_people_type(site, words, page):
    documents = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    titles = [entry["location"] for entry in documents if words.lower() in entry["title"].lower()]
    assert any(location.startswith(page) for location in titles), titles


@pytest.mark.slow
def test_the_site_fetches_nothing_from_other_hosts(site):
    for page in site.rglob("*.html"):
        sources = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page.read_text())
        assert [source for source in sources if source.startswith("http") or source == "-"] == [], page
