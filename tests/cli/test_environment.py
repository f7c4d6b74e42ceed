"""``minifast env`` and ``minifast cache``: what they print and remove, and that help needs no torch."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest import write_images
from hypothesis import given
from hypothesis import strategies as st

import minifast
from minifast import ImageDataBunch, cli
from minifast.cli import environment
from minifast.utils.folders import cache_files, size_of, size_text

LOADED = """
import sys
from minifast import cli
for arguments in (["--help"], ["train", "--help"], ["--version"], ["cache"], ["tarin"]):
    try:
        cli.main(arguments)
    except SystemExit:
        pass
    print("LOADED", arguments, *(name for name in ("torch", "numpy", "matplotlib") if name in sys.modules))

import minifast
assert set(minifast.__all__) <= set(dir(minifast))  # completion shows names that are not imported yet
minifast.Learner
print("LOADED Learner", *(name for name in ("torch", "numpy", "matplotlib") if name in sys.modules))
"""


def test_help_and_cache_import_neither_torch_nor_numpy():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    *light, learner = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert len(light) == 5
    assert [line for line in light if not line.endswith("]")] == []
    assert learner.split() == ["LOADED", "Learner", "torch", "numpy"]


# --- env


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert cli.main(["env"]) == 0
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_env_prints_versions_devices_and_folders(empty_home, capsys):
    (empty_home / "data" / "set").mkdir(parents=True)
    (empty_home / "data" / "set" / "a.bin").write_bytes(bytes(2500))
    rows = printed(capsys)
    assert rows["minifast"].startswith(f"{minifast.__version__} in ")
    assert rows["torch"] == metadata.version("torch")
    assert rows["devices"].startswith("cpu")
    assert rows["threads"].startswith(f"{torch.get_num_threads()} of torch")
    assert rows["data"] == f"{empty_home / 'data'} (2.5 kB)"
    assert rows["cache"] == f"{empty_home / 'cache'} (does not exist)"


def test_env_names_each_dependency_of_the_metadata(capsys):
    rows = printed(capsys)
    required = [text for text in metadata.requires("minifast") or [] if "extra ==" not in text]
    names = {text.split(">")[0].split("=")[0].strip() for text in required}
    assert {"torch", "numpy"} <= names
    assert names <= rows.keys()


def test_env_works_without_a_package_and_with_a_broken_torch(capsys, monkeypatch):
    monkeypatch.setattr(environment, "OPTIONAL", ("no-such-package",))
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises an ImportError
    rows = printed(capsys)
    assert rows["no-such-package"] == "not installed"
    assert rows["devices"].startswith("torch cannot be imported: ")
    assert "data" in rows


# --- cache


@pytest.fixture
def cached(tmp_path: Path, empty_home: Path) -> list[Path]:
    """The files of a cached set of images."""
    for part in ("train", "valid"):
        write_images(tmp_path / "set" / part / "a", 4)
    ImageDataBunch.from_folder(tmp_path / "set", bs=2)
    files = sorted((empty_home / "cache").iterdir())
    assert len(files) == 2
    return files


def test_the_cache_is_cleared_and_nothing_else(cached, tmp_path, empty_home, capsys):
    folder = cached[0].parent
    incomplete = folder / f".{cached[0].name}.0123abcd"  # left by a process that was killed
    incomplete.write_bytes(bytes(1000))
    others = [folder / "notes.txt", folder / "x.pictures", folder / ("0" * 32), empty_home / "data" / "set.tgz"]
    (empty_home / "data").mkdir()
    for other in others:
        other.write_text("mine")
    size = size_text(1000 + sum(file.stat().st_size for file in cached))

    assert cli.main(["cache"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{folder} has 3 files of decoded images, {size}."
    assert all(file.is_file() for file in cached)

    assert cli.main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"Removed 3 files of decoded images from {folder}, {size}.\n"
    assert cache_files() == []
    assert all(other.is_file() for other in others)
    assert cli.main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"Removed 0 files of decoded images from {folder}, 0 bytes.\n"
    ImageDataBunch.from_folder(tmp_path / "set", bs=2)
    assert cache_files() == cached


def test_a_cache_that_does_not_exist_is_empty(empty_home, capsys):
    assert cli.main(["cache"]) == 0
    assert capsys.readouterr().out == f"{empty_home / 'cache'} has 0 files of decoded images, 0 bytes.\n"
    assert cli.main(["cache", "--clear"]) == 0
    assert not empty_home.exists()


def test_files_that_cannot_be_removed_are_reported(cached, monkeypatch, capsys):
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert cli.main(["cache", "--clear"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("Removed 0 files")
    assert "2 files could not be removed: " in captured.err
    assert str(cached[0]) in captured.err
    assert cache_files() == cached


def test_links_in_the_cache_are_not_followed(cached, tmp_path):
    target = tmp_path / "precious"
    target.write_bytes(bytes(10))
    link = cached[0].with_name(f"{'a' * 32}.pictures")
    link.symlink_to(target)
    assert cli.main(["cache", "--clear"]) == 0
    assert target.exists()
    assert not link.is_symlink()


@given(st.integers(0, 10**15))
def test_a_size_as_text_is_within_a_twentieth(size):
    number, unit = size_text(size).split()
    assert abs(float(number) * {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit] - size) <= size / 20


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(bytes(7))
    (tmp_path / "a" / "d").write_bytes(bytes(5))
    assert size_of(tmp_path / "a") == 12
    assert size_of(tmp_path / "a" / "d") == 5
    assert size_of(tmp_path / "missing") == 0
