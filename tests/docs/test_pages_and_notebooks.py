"""The README and the notebooks do what they say."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from minifast import ImageDataBunch, Learner, URLs, cli, simple_cnn, untar_data

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))

sys.path.insert(0, str(ROOT))
from benchmarks.events import table  # noqa: E402


@pytest.mark.usefixtures("pictures")
def test_readme_examples_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = ImageDataBunch.from_folder(untar_data(URLs.MNIST_SAMPLE))
    (tmp_path / "results").mkdir()
    Learner(pictures, simple_cnn((3, 16, 16, 2)), path="results").export()  # what the command line would have left
    names: dict[str, object] = {}
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), names)
    assert (tmp_path / "models" / "mine.pth").is_file()
    assert (tmp_path / "models" / "run1.checkpoint").is_file()
    assert (tmp_path / "models" / "bestmodel.pth").is_file()
    assert (tmp_path / "history.csv").is_file()
    assert (tmp_path / "epochs.csv").is_file()


def test_readme_has_examples_and_pictures():
    assert len(EXAMPLES) >= 4
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).is_file()


def test_readme_table_of_events_is_the_code_s():
    assert table() in README


def test_readme_table_of_features_leads_to_tests():
    rows = README.split("<!-- features -->")[1].split("<!-- /features -->")[0].strip().splitlines()[2:]
    assert len(rows) >= 15
    for row in rows:
        _, what, ours, *others, _ = map(str.strip, row.split("|"))
        assert len(others) == 5, what
        if ours != "no":
            found = re.fullmatch(r'\[yes\]\((tests/test_\w+\.py) "(test_\w+)"\)', ours)
            assert found is not None, what
            assert f"\ndef {found[2]}(" in (ROOT / found[1]).read_text(), what


def test_readme_links_lead_somewhere():
    for page in ("README.md", "benchmarks/README.md"):
        for link in re.findall(r"\]\(([^)# ]+)", (ROOT / page).read_text()):
            assert link.startswith("http") or (ROOT / page).parent.joinpath(link).exists(), link


def test_readme_commands_exist():
    commands = re.findall(r"minifast ((?:train|predict|compare|schedule)[^`\n]*)", README)
    assert {command.split()[0] for command in commands} == {"train", "predict", "compare", "schedule"}
    for command in commands:
        if "--help" not in command:
            cli.parser().parse_args(shlex.split(command))
    two = re.search(r"<!-- commands -->\n```sh\n(.*)\n(.*)\n```", README)
    assert two is not None
    assert all(line.startswith("python -m pip install ") for line in two.groups())


def test_readme_figures_are_filled_in():
    seeds = README.split("<!-- seeds -->")[1].split("<!-- /seeds -->")[0]
    assert len(re.findall(r"\| 0\.\d{4} ± 0\.\d{4} ", seeds)) == 30
    assert "Of each schedule at its best rate: By accuracy, one_cycle, 0.05 is first" in seeds
    held = README.split("<!-- held -->")[1].split("<!-- /held -->")[0]
    assert len(re.findall(r"\| \d+ \|\n", held)) == 14


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_keeps_its_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is not None
            assert not [output for output in cell["outputs"] if output.get("name") == "stderr" or "ename" in output]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if i else []) for i, path in enumerate(NOTEBOOKS)],
    ids=[path.stem for path in NOTEBOOKS],
)
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
