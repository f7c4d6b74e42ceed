"""The benchmarks can be run, and the tables that they write name tests and pages that exist."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
documents = importlib.import_module("benchmarks.documents")
guarantees = importlib.import_module("benchmarks.guarantees")
main = importlib.import_module("benchmarks.__main__")


@pytest.mark.parametrize("name", [*main.MEASURED, *main.WRITTEN])
def test_each_benchmark_has_a_module_that_runs(name):
    module = importlib.import_module(f"benchmarks.{name}")
    functions = ("rows", "report", "main")
    assert any(hasattr(module, function) for function in functions)


@pytest.mark.parametrize("test", [test for tests in guarantees.TESTS.values() for test in tests])
def test_each_guarantee_names_tests_that_exist(test):
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", main.MEASURED)
def test_each_measurement_has_its_place_in_the_page_of_benchmarks(name):
    assert documents.document_with(name) == main.REPORT


@pytest.mark.parametrize("name", ["seeds", "held", "events"])
def test_each_written_table_has_its_place_on_one_page(name):
    text = documents.document_with(name).read_text()
    assert text.index(f"<!-- {name} -->") < text.index(f"<!-- /{name} -->")


def test_write_part_replaces_the_text_between_its_comments(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    documents.write_part("table", "new \\1 text\n", page)
    assert page.read_text() == "before\n<!-- table -->\nnew \\1 text\n<!-- /table -->\nafter\n"
    with pytest.raises(SystemExit, match=r"page\.md has no <!-- other -->"):
        documents.write_part("other", "new", page)
