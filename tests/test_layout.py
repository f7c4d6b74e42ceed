"""The layout of the package: which package imports which, what is public, and that importing changes nothing."""

from __future__ import annotations

import ast
import importlib
import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import minifast

PACKAGE = Path(minifast.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Each imports only from those before it, and from itself.
ORDER = [
    "errors",
    "utils",
    "schedules",
    "plotting",
    "hooks",
    "model_loss",
    "losses",
    "distributed",
    "models",
    "data",
    "training",
    "metrics",
    "checkpoint",
    "finder",
    "callbacks",
    "history",
    "diagnostics",
    "export",
    "learner",
    "vision",
    "tabular",
    "comparison",
    "_api",
    "__init__",
    "cli",
    "__main__",
]
PACKAGES = [name for name in ORDER if (PACKAGE / name).is_dir()]


def top(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    """The packages of minifast that a file imports, but for those that only a type checker imports."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return []
    if isinstance(tree, ast.ImportFrom) and tree.module == "minifast":
        return [alias.name if alias.name in ORDER else "__init__" for alias in tree.names]
    if isinstance(tree, ast.ImportFrom) and (tree.module or "").startswith("minifast."):
        return [str(tree.module).split(".")[1]]
    if isinstance(tree, ast.Import):
        return [alias.name.split(".")[1] for alias in tree.names if alias.name.startswith("minifast.")]
    return [name for node in ast.iter_child_nodes(tree) for name in imports(node)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_package_imports_only_from_packages_before_it(file):
    allowed = ORDER[: ORDER.index(top(file))]
    assert set(imports(ast.parse(file.read_text()))) - {top(file)} <= set(allowed)


def test_no_two_files_of_tests_have_one_name():
    names = [file.name for file in Path(__file__).parent.rglob("test_*.py")]
    assert [name for name in set(names) if names.count(name) > 1] == []  # pytest would import one for the other


def test_an_import_in_the_wrong_direction_would_be_seen():
    source = (
        "from minifast import learner, DataBunch\ndef f():\n    from minifast.cli import main\n    import minifast.data"
    )
    assert imports(ast.parse(source)) == ["learner", "__init__", "cli", "data"]


def test_only_progress_imports_fastprogress():
    users = [str(file.relative_to(PACKAGE)) for file in FILES if "import fastprogress" in file.read_text()]
    users += [str(file.relative_to(PACKAGE)) for file in FILES if "from fastprogress" in file.read_text()]
    assert set(users) == {"training/progress.py"}


def test_no_file_but_the_learner_is_over_400_lines():
    long = {str(file.relative_to(PACKAGE)) for file in FILES if len(file.read_text().splitlines()) > 400}
    assert long <= {"learner/learner.py"}


def lines_of_code(function: ast.FunctionDef, source: str) -> list[str]:
    """The lines of a function but for its docstring, comments and blank ones."""
    first = function.body[1] if ast.get_docstring(function) is not None else function.body[0]
    lines = source.splitlines()
    start = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    picked = lines[start - 1 : function.body[0].lineno - 1] + lines[first.lineno - 1 : function.end_lineno]
    return [line for line in picked if line.strip() and not line.strip().startswith("#")]


def test_the_core_loop_is_under_60_lines():
    source = (PACKAGE / "training" / "loop.py").read_text()
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    core = [lines_of_code(functions[name], source) for name in ("fit", "one_batch", "validate")]
    assert 40 < sum(map(len, core)) < 60


# --- public names


def test_the_public_names_are_those_of_the_snapshot():
    # A name that joins or leaves is a decision: write it into the file.
    snapshot = (Path(__file__).parent / "public_names.txt").read_text().split()
    assert sorted(minifast.__all__) == snapshot


def test_a_star_import_gives_these_and_no_everyday_word():
    names: dict[str, object] = {}
    exec("from minifast import *", names)
    assert names.keys() - {"__builtins__"} == set(minifast.__all__)
    assert not names.keys() & {"join", "step", "repeat", "linear", "constant", "cosine", "compare", "normalize"}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_names_of_a_package_exist_and_it_says_what_lives_there(package):
    module = importlib.import_module(f"minifast.{package}")
    assert [name for name in getattr(module, "__all__", []) if not hasattr(module, name)] == []
    assert len(module.__doc__.splitlines()) > 1 or package in ("cli",)


def test_each_public_name_stands_in_a_package_too():
    homes = [importlib.import_module(f"minifast.{name}") for name in ORDER if not name.startswith("__")]
    lonely = [name for name in minifast.__all__ if name not in ORDER and not any(hasattr(home, name) for home in homes)]
    assert [name for name in lonely if name != "set_seed"] == []


def test_a_name_that_moved_still_works_and_warns():
    with pytest.warns(DeprecationWarning, match=r"minifast\.join is now minifast\.schedules\.join"):
        assert minifast.join is minifast.schedules.join
    for name, package in minifast._MOVED.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert getattr(minifast, name) is getattr(importlib.import_module(f"minifast.{package}"), name)
    with pytest.raises(AttributeError, match="no attribute 'jion'"):
        minifast.jion  # noqa: B018


def test_the_learner_is_one_class_in_one_file():
    cls = minifast.Learner
    assert cls.__mro__ == (cls, object)
    assert all(value.__module__ == cls.__module__ for value in vars(cls).values() if hasattr(value, "__code__"))


# --- importing


LOOK = """
import json, logging, os, random, signal, sys, threading, warnings
import numpy, torch

def world():
    return {
        "generators": [
            hash(random.getstate()), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
            torch.initial_seed(),
        ],
        "torch": [
            str(torch.get_default_dtype()), str(torch.get_default_device()), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(), torch.multiprocessing.get_sharing_strategy(),
        ],
        "warnings": [repr(warnings.filters), repr(warnings.showwarning)],
        "signals": [repr(signal.getsignal(number)) for number in signal.valid_signals()],
        "logging": [
            repr(logging.root.handlers), logging.root.level, logging.root.disabled, logging.raiseExceptions,
            sorted(name for name in logging.root.manager.loggerDict if "minifast" in name),
        ],
        "hooks": [repr(hook) for hook in (sys.excepthook, sys.displayhook, threading.excepthook, sys.stdout)],
        "threads": threading.active_count(),
        "numpy": repr(numpy.get_printoptions()) + repr(numpy.geterr()),
        "environment": dict(os.environ),
        "place": [os.getcwd(), list(sys.path), sys.getrecursionlimit()],
    }

deeds = []

def watch(event, arguments):
    if event == "open":
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(arguments[2], int) else 0
        if writes:
            deeds.append(f"opened {arguments[0]} to write")
    elif event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "subprocess.Popen", "os.fork", "os.chmod"):
        deeds.append(f"{event} {arguments[:1]}")

before = world()
sys.addaudithook(watch)
import minifast
from minifast import *
done = list(deeds)
after = world()
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "deeds": done,
    "heavy": [name for name in (
        "torchvision", "matplotlib", "fastprogress", "PIL", "pooch", "torchmetrics"
    ) if name in sys.modules],
    "joined": torch.distributed.is_initialized(),
}))
"""


def test_importing_brings_nothing_heavy_writes_nothing_and_changes_nothing(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MINIFAST", "PYTHON"))}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(PACKAGE.parent)}
    environment |= {"RANK": "0", "WORLD_SIZE": "2"}  # not even under torchrun
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", LOOK], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"changed": [], "deeds": [], "heavy": [], "joined": False}
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_each_file_can_be_imported(file):
    name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    if not name.endswith("__main__"):
        assert Path(importlib.import_module(name).__file__) == file


IMPORT_EACH_FIRST = """
import importlib, sys, torch
for name in sys.argv[1:]:
    for old in [old for old in sys.modules if old.split(".")[0] == "minifast"]:
        del sys.modules[old]
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_each_package_can_be_imported_first():
    names = ["minifast" if name == "__init__" else f"minifast.{name}" for name in ORDER[:-1]]
    subprocess.run([sys.executable, "-W", "error", "-c", IMPORT_EACH_FIRST, *names], check=True, cwd=PACKAGE.parent)


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "::ffff:192.0.2.1"])
@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_no_test_can_use_the_network(host, method):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock, pytest.raises(pytest.fail.Exception, match="uses the network"):
        getattr(sock, method)((host, 80))
    with pytest.raises(pytest.fail.Exception, match="uses the network"):
        socket.create_connection((host, 80))


def test_tests_can_use_a_server_on_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()


def test_type_checkers_are_told_of_the_types():
    assert (PACKAGE / "py.typed").is_file()
