"""Each script of ``examples/`` runs, and the table there names all of them."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
SLOW = {"hugging_face_text", "mlflow_local", "timm_vision_transformer", "torchvision_transforms", "wandb_offline"}
OWN = {"minifast", *sys.stdlib_module_names}


def packages(script: Path) -> set[str]:
    """The packages that a script imports, but for minifast and the standard library."""
    nodes = ast.walk(ast.parse(script.read_text()))
    names = [name for node in nodes if isinstance(node, ast.Import) for name in (alias.name for alias in node.names)]
    nodes = ast.walk(ast.parse(script.read_text()))
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - OWN


def needed(script: Path) -> set[str]:
    """The packages that a script imports, and the one that the callback in its name imports."""
    return packages(script) | {name for name in ("wandb", "mlflow", "optuna") if script.stem.startswith(name)}


@pytest.mark.filterwarnings("ignore")  # of other packages
@pytest.mark.parametrize(
    "script",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem) for path in SCRIPTS],
)
def test_an_example_runs(script, tmp_path, monkeypatch):
    for package in needed(script):
        pytest.importorskip(package)
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")  # telemetry of wandb
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")


def test_the_table_names_each_script_and_what_it_needs():
    rows = re.findall(r"^\| \[(\w+\.py)\]\(\1\) \| .* \| (?:`(.*)`)? ?\|$", (FOLDER / "README.md").read_text(), re.M)
    base = {"PIL", "torch", "torchvision"}
    assert dict(rows) == {
        script.name: ", ".join(sorted(packages(script) - base)) or "".join(
            name for name in ("wandb", "mlflow", "optuna") if script.stem.startswith(name)
        )
        for script in SCRIPTS
    }  # fmt: skip


def test_scripts_exist_and_are_short():
    assert SCRIPTS
    assert all(len(script.read_text().splitlines()) <= 80 for script in SCRIPTS)


def test_the_search_of_imports_sees_them():
    assert "transformers" in packages(FOLDER / "hugging_face_text.py")
