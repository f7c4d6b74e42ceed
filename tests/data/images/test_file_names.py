"""Image files with unusual names, links that loop, and files that vanish or cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import slow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minifast import DataBunch, DataError, ImageDataBunch, Learner, get_image_files, simple_cnn
from minifast.data.images import cache, decoding
from minifast.data.images.decoding import ImageFiles
from minifast.data.images.listing import list_images

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
OPTIONS = {"bs": 4, "device": "cpu", "seed": 0}
LATIN = "caf\udce9"  # the bytes "café" in Latin-1, as Python reads them


def paint(file: Path, value: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((4, 4), value, np.uint8)
    image[0, 0] = 255 - value
    Image.fromarray(image).save(str(file), "PNG")


@pytest.fixture
def tree(tmp_path):
    for part, n in (("train", 6), ("valid", 3)):
        for name, value in ((LATIN, 10), ("dog", 200)):
            for i in range(n):
                paint(tmp_path / part / name / f"{LATIN}{i}.png", value + i)
    return tmp_path


@pytest.mark.parametrize("memory", [0, *slow(2**20)])
def test_class_folders_and_files_that_are_not_utf_8(tree, memory, capsys, tmp_path):
    data = ImageDataBunch.from_folder(tree, memory=memory, num_workers=0, **OPTIONS)
    assert data.classes == ["caf\\udce9", "dog"]
    assert len(data.train_ds) == 12
    learn = Learner(data, simple_cnn((3, 4, 2)), silent=True, path=tmp_path)
    learn.fit(1, 0.1, checkpoint="run")
    data.show_batch(2)
    learn.show_results(rows=2)
    plt.gcf().canvas.draw()
    plt.close("all")
    print(data, learn.predict(tree / "train" / LATIN / f"{LATIN}0.png")[0])
    assert capsys.readouterr().out.isascii()
    learn.export("export.pkl")


def test_files_that_are_not_utf_8_are_cached(tree, monkeypatch):
    first = ImageDataBunch.from_folder(tree, **OPTIONS)
    monkeypatch.setattr(decoding, "decode", None)
    again = ImageDataBunch.from_folder(tree, **OPTIONS)
    assert again.train_dl.x.equal(first.train_dl.x)


def test_labels_from_names_that_are_not_utf_8(tree):
    names = get_image_files(tree / "train", recurse=True)
    data = ImageDataBunch.from_name_re(tree, names, r"/([^/]+)/[^/]+$", **OPTIONS)
    assert data.classes == ["caf\\udce9", "dog"]


NAME = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20) | st.binary(
    min_size=1, max_size=20
).map(os.fsdecode)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAME.filter(lambda name: not name.startswith(".") and "/" not in name and "\0" not in name))
def test_files_of_any_name_are_found_and_decoded(tmp_path, name):
    folder = tmp_path / os.fsencode(name).hex()
    try:
        paint(folder / name / f"{name}.png")
    except OSError:  # too long
        return
    files = ImageFiles(str(folder))
    files.add(list_images(folder, recurse=True), 0)
    assert [os.path.basename(file) for file, _, _ in files.listing] == [f"{name}.png"]  # noqa: PTH119
    assert files.tensors()[0].shape == (1, 1, 4, 4)


# --- links


def test_links_that_loop_are_not_followed_again(tmp_path):
    paint(tmp_path / "a" / "1.png")
    paint(tmp_path / "b" / "2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "back").symlink_to(tmp_path / "a")
    (tmp_path / "twice").symlink_to(tmp_path / "b")
    found = {str(path.relative_to(tmp_path)) for path in get_image_files(tmp_path, recurse=True)}
    assert {"a/1.png", "b/2.png", "a/other/2.png", "twice/2.png", "b/back/1.png", "twice/back/1.png"} <= found
    assert not any("up" in path or "self" in path for path in found)
    assert {str(path.relative_to(tmp_path)) for path in get_image_files(tmp_path / "a")} == {"a/1.png"}


def test_a_link_to_itself_named_as_an_image_raises(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(DataError, match=r"loop\.png is a broken link"):
        get_image_files(tmp_path)


# --- files that vanish, or cannot be read


@pytest.mark.parametrize("memory", [2**20, 0])
def test_a_file_that_vanishes_after_the_folder_was_read_is_named(tree, memory, monkeypatch):
    file = tree / "valid" / "dog" / f"{LATIN}1.png"
    read = decoding.read_image

    def vanish(name, *options):
        if "valid" in str(name):
            file.unlink(missing_ok=True)
        return read(name, *options)

    monkeypatch.setattr(decoding, "read_image", vanish)
    with pytest.raises(DataError, match=r"1\.png was removed after the data set was made\. Make the data set again"):
        list(ImageDataBunch.from_folder(tree, memory=memory, num_workers=0, **OPTIONS).valid_dl)


def test_a_worker_names_a_file_that_vanished(tree):
    data = ImageDataBunch.from_folder(tree, memory=0, num_workers=1, **OPTIONS)
    (tree / "train" / "dog" / f"{LATIN}1.png").unlink()
    with pytest.raises(DataError, match=r"^[^\n]*1\.png was removed after the data set was made[^\n]*$"):
        list(data.train_dl)


def test_a_file_that_vanishes_while_the_folder_is_read_is_left_out(tree, monkeypatch):
    class Entry:
        name, path = "gone.png", str(tree / "gone.png")
        is_symlink = is_dir = staticmethod(lambda: False)

        def stat(self):
            raise FileNotFoundError(self.path)

    class Folder(list):
        __enter__ = list.copy
        __exit__ = lambda *args: None  # noqa: E731

    monkeypatch.setattr(os, "scandir", lambda folder: Folder([Entry()]))
    assert list_images(tree, recurse=False) == []


def test_a_file_that_may_not_be_read_is_named(tree, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decoding, "_content", denied)
    monkeypatch.chdir(tree)  # a long list of names is written there
    with pytest.raises(DataError, match=r"0\.png cannot be opened \(Permission denied\)\. Change its permissions"):
        ImageDataBunch.from_folder(tree, **OPTIONS)


# --- the cache


def test_a_cache_with_bytes_too_many_is_not_used(tree, empty_home):
    first = ImageDataBunch.from_folder(tree, **OPTIONS)
    for file in (empty_home / "cache").iterdir():
        file.write_bytes(file.read_bytes() + b"x")
        header = file.read_bytes()[: cache.HEADER]
        assert cache.read_cache(file, header.decode().split('"')[3]) is None
    assert ImageDataBunch.from_folder(tree, **OPTIONS).train_dl.x.equal(first.train_dl.x)


@pytest.mark.parametrize("place", ["file", "file/home"])
def test_a_cache_folder_that_cannot_be_written_is_no_error(place, tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINIFAST_HOME", str(tmp_path / place))
    data = ImageDataBunch.from_folder(tree, **OPTIONS)
    x = torch.cat([x for x, _ in data.valid_dl])
    assert len(x) == 6
    assert (tmp_path / "file").read_text() == "in the way"


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20))
def test_a_class_has_the_name_that_utf_8_gives_in_any_locale(name):
    escaped = name.encode().decode("ascii", "surrogateescape")
    data = DataBunch([(torch.zeros(2, 1), torch.zeros(2))], device="cpu", classes=[escaped, "dog ", LATIN])
    assert data.classes == [name, "dog ", "caf\\udce9"]


@pytest.mark.slow
def test_class_folders_have_the_same_names_in_a_locale_without_their_characters(tmp_path):
    for part in ("train", "valid"):
        for name in ("é", "猫", LATIN):
            paint(tmp_path / part / name / "é0.png")
    code = (
        "import sys; from minifast import ImageDataBunch as B; options = dict(bs=1, device='cpu', seed=0)\n"
        "for extra in ({}, {'valid_pct': 0.4}, {'classes': ['\\u732b', '\\xe9']}):\n"
        "    data = B.from_folder('.', **options, **extra); print(ascii((data.classes, data.left_out)))\n"
        "    print(ascii([data.classes[int(data.train_ds[i][1])] for i in range(len(data.train_ds))]))\n"
        "    print([p.parent.name.encode('utf-8', 'surrogateescape').hex() for p in data.train_ds.items])\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    plain = {**environment, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = partial(subprocess.run, [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    outputs = [run(env=env) for env in (plain, {**environment, "PYTHONUTF8": "1"})]
    assert outputs[0].stdout == outputs[1].stdout != "", outputs[0].stderr
    assert "'\\xe9', '\\u732b'" in outputs[0].stdout
