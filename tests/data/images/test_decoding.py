"""Image files: listed, decoded as PIL does, cached for the next process, and named in errors."""

from __future__ import annotations

import importlib.util
import mimetypes
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from minifast import DataError, DatasetType, ImageDataBunch, Learner, get_image_files, load_learner, simple_cnn
from minifast.data.images import cache, decoding, listing
from minifast.data.images.conversion import UnreadableImageError
from minifast.data.images.decoding import ImageFiles, decode, read_image
from minifast.data.images.listing import list_images


def noise(mode: str = "RGB", size: tuple[int, int] = (6, 4), seed: int = 0) -> Image.Image:
    """A image of random pixels, ``size`` as (width, height)."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def by_pil(file: Path, mode: str = "RGB") -> np.ndarray:
    """What PIL makes of a file, as (channels, height, width)."""
    with Image.open(file) as image:
        array = np.asarray(image.convert(mode))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def names_in(folder: Path) -> list[str]:
    return [name for name, _, _ in list_images(folder, recurse=True)]


def images_in(folder: Path, size=None) -> ImageFiles:
    images = ImageFiles(str(folder), size)
    images.add(list_images(folder, recurse=True), 0)
    return images


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The names of the files that are decoded from now on."""
    names, really_read = [], decoding.read_image

    def spy(file, *args, **kwargs):
        names.append(Path(file).name)
        return really_read(file, *args, **kwargs)

    monkeypatch.setattr(decoding, "read_image", spy)
    return names


# --- which files


def test_images_are_found_by_suffix_and_sorted_by_name(tmp_path):
    for name in ("b.png", "a.JPG", "c.jpeg", "d.bmp", "e.gif", "f.tif", "notes.txt", "labels.csv", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "g.png").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "h.png").touch()
    here = ["a.JPG", "b.png", "c.jpeg", "d.bmp", "e.gif", "f.tif"]
    assert [path.name for path in get_image_files(tmp_path)] == here
    assert [path.name for path in get_image_files(str(tmp_path), recurse=True)] == [*here, "g.png"]
    assert [path.name for path in get_image_files(tmp_path, check_ext=False)] == [*here, "labels.csv", "notes.txt"]


@pytest.mark.parametrize("table", [{}, {".djvu": "image/vnd.djvu", ".png": "image/png"}], ids=["empty", "rich"])
def test_which_suffixes_are_images_depends_on_no_table_of_the_machines(tmp_path, monkeypatch, table):
    monkeypatch.setattr(mimetypes, "types_map", table)  # after mimetypes.init(), the machine's own
    spec = importlib.util.spec_from_file_location("another_images", listing.__file__)
    another = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(another)
    for name in ("a.png", "b.jpg", "c.webp", "d.djvu"):
        (tmp_path / name).touch()
    assert [path.name for path in another.get_image_files(tmp_path)] == ["a.png", "b.jpg", "c.webp"]


def test_an_empty_folder_has_no_images(tmp_path):
    assert get_image_files(tmp_path) == []


@pytest.mark.parametrize("name", ["nowhere", "file.txt"])
def test_a_folder_that_is_not_there_is_named(tmp_path, name):
    (tmp_path / "file.txt").touch()
    with pytest.raises(DataError, match=rf"There is no folder .*{name}\W "):
        get_image_files(tmp_path / name)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "lost.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"lost\.png"):
        get_image_files(tmp_path)


# --- decoding one file


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("L", "png", 1),
        ("1", "png", 1),
        ("RGB", "png", 3),
        ("P", "png", 3),
        ("RGBA", "png", 3),
        ("LA", "png", 3),
        ("L", "jpg", 1),
        ("RGB", "jpg", 3),
        ("CMYK", "jpg", 3),
        ("P", "gif", 3),
        ("RGB", "bmp", 3),
        ("RGB", "webp", 3),
    ],
)
@pytest.mark.parametrize("size", [(6, 4), (1, 1)])
def test_a_image_is_what_pil_makes_of_it(tmp_path, mode, suffix, channels, size):
    file = tmp_path / f"x.{suffix}"
    noise(mode, size).save(file)
    image = read_image(str(file))
    assert (image.dtype, image.shape) == (np.uint8, (channels, size[1], size[0]))
    assert np.array_equal(image, by_pil(file, "L" if channels == 1 else "RGB"))


def test_a_palette_with_a_transparency_for_each_colour_is_read_without_a_warning(tmp_path):
    file = tmp_path / "x.png"
    noise("P").save(file, transparency=bytes(range(256)))
    with Image.open(file) as image:
        assert isinstance(image.info["transparency"], bytes)
        colours = np.asarray(image.convert("RGBA").convert("RGB"))
    assert np.array_equal(read_image(str(file)), colours.transpose(2, 0, 1))


@pytest.mark.parametrize("memory", [2**30, 0])
def test_gray_images_keep_one_channel_from_memory_and_from_files(tmp_path, memory):
    colours = np.random.default_rng(0).integers(256, size=(12, 5, 4, 3), dtype=np.uint8)
    for i, image in enumerate(map(Image.fromarray, colours)):
        folder = tmp_path / "images" / f"{i % 2}"
        folder.mkdir(exist_ok=True, parents=True)
        (image if i % 3 else image.convert("L")).save(folder / f"{i}.png")
    options = {"valid_pct": 0.5, "bs": 3, "seed": 0, "device": "cpu", "num_workers": 0, "memory": memory}
    data = ImageDataBunch.from_folder(tmp_path / "images", channels=1, **options)
    for dl in (data.train_dl, data.valid_dl):
        assert all(x.shape[1:] == (1, 5, 4) and x.dtype is torch.float32 for x, _ in dl)
    file = data.valid_ds.items[0]
    wanted = np.asarray(Image.open(file).convert("L")) / np.float32(255)
    assert np.allclose(next(iter(data.valid_dl))[0][0, 0], wanted)
    assert np.allclose(data.encode(file)[0, 0], wanted)
    assert np.allclose(data.encode(Image.open(file))[0, 0], wanted)
    learn = Learner(data, simple_cnn((1, 4, 2)), silent=True, path=tmp_path)
    learn.fit(1)
    learn.export()
    loaded = load_learner(tmp_path, test=[file])
    assert loaded.get_preds(DatasetType.Test)[0].allclose(learn.predict(file)[2][None], atol=1e-5)
    assert loaded.predict(file)[2].allclose(learn.predict(file)[2], atol=1e-5)
    assert ImageDataBunch.from_folder(tmp_path / "images", **options).one_batch()[0].shape[1] == 3


@pytest.mark.parametrize("size", [(3, 5), (5, 3), (8, 8), (1, 1), (4, 6)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_size_crops_the_middle_and_scales(tmp_path, mode, size):
    file = tmp_path / "x.png"
    noise(mode).save(file)
    with Image.open(file) as image:
        wanted = np.asarray(ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR))
    found = read_image(str(file), size)
    assert found.shape[1:] == size
    assert np.array_equal(found.transpose(1, 2, 0).squeeze(2) if mode == "L" else found.transpose(1, 2, 0), wanted)


def test_the_middle_stays_when_the_sides_are_cropped(tmp_path):
    pixels = np.zeros((4, 12), np.uint8)
    pixels[:, 4:8] = 200
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(read_image(str(tmp_path / "x.png"), (4, 4)), np.full((1, 4, 4), 200))


# --- files that are no images


@pytest.mark.parametrize("content", [b"", b"not a image", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "signature"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_is_no_image_is_named(tmp_path, content, threads):
    write_images(tmp_path, 4)
    (tmp_path / "2.png").write_bytes(content)
    with pytest.raises(DataError, match=r"/2\.png is not a readable image, or it is truncated\. "):
        decode(names_in(tmp_path), threads=threads)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "ppm"])
def test_a_image_that_is_cut_off_is_named(tmp_path, suffix):
    file = tmp_path / f"x.{suffix}"
    noise(size=(12, 10)).save(file)
    content = file.read_bytes()
    for share in (0.05, 0.3, 0.6, 0.9):
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError, match=rf"x\.{suffix} is not a readable image"):
            read_image(str(file))


def test_a_broken_image_among_good_ones_is_the_one_that_is_named(tmp_path):
    write_images(tmp_path, 3)
    file = tmp_path / "1.png"
    content = bytearray(file.read_bytes())
    content[60] ^= 0xFF  # within the pixels, where PNG keeps a check sum
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"/1\.png is not a readable image"):
        decode(names_in(tmp_path))


# --- decoding many


def test_grey_images_stay_one_channel(tmp_path):
    write_images(tmp_path, 3, (5, 4))
    images = decode(names_in(tmp_path))
    assert (images.dtype, images.shape) == (torch.uint8, (3, 1, 4, 5))
    for i, image in enumerate(images):
        assert np.array_equal(image, by_pil(tmp_path / f"{i}.png", "L"))


@pytest.mark.parametrize("order", ["LRL", "RLL", "LLR", "RRL"])
@pytest.mark.parametrize("threads", [1, 3])
def test_one_coloured_image_gives_all_three_channels(tmp_path, order, threads):
    for i, mode in enumerate(order):
        noise({"L": "L", "R": "RGB"}[mode], seed=i).save(tmp_path / f"{i}.png")
    images = decode(names_in(tmp_path), threads=threads)
    assert images.shape == (3, 3, 4, 6)
    for i, image in enumerate(images):
        assert np.array_equal(image, by_pil(tmp_path / f"{i}.png"))


@settings(max_examples=30, deadline=None)
@given(channels=st.lists(st.sampled_from([1, 1, 1, 3]), min_size=1, max_size=90), threads=st.integers(1, 5))
def test_gray_and_coloured_images_keep_their_places_in_any_order(channels, threads):
    def read(name: str, *_: object) -> np.ndarray:
        i = int(name)
        time.sleep(0.0002 * (i % 3))
        return np.full((channels[i], 1, 2), i, np.uint8) + np.arange(channels[i], dtype=np.uint8)[:, None, None]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(decoding, "read_image", read)
        images = decode([str(i) for i in range(len(channels))], threads=threads)
        wanted = np.stack([np.broadcast_to(read(str(i)), (max(channels), 1, 2)) for i in range(len(channels))])
    assert np.array_equal(images, wanted)


def test_an_item_is_contiguous_and_several_are_the_same(tmp_path):
    for i in range(3):
        noise(size=(500, 375), seed=i).save(tmp_path / f"{i}.jpg")
    files = images_in(tmp_path, size=224)
    items = [files[i] for i in range(3)]
    assert all(image.is_contiguous() for image, _ in items)
    for (image, label), (other, same_label) in zip(items, files.__getitems__(range(3)), strict=True):
        assert torch.equal(image, other)
        assert label == same_label


def test_images_of_different_sizes_are_named_both_with_their_sizes(tmp_path):
    write_images(tmp_path, 2, (6, 4))
    noise("L", (5, 4)).save(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"/0\.png is 6×4 pixels and .*/2\.png is 5×4\. Give a size .*size="):
        decode(names_in(tmp_path))
    assert decode(names_in(tmp_path), (4, 4)).shape == (3, 1, 4, 4)


@pytest.mark.parametrize("n", [1, 2, 30, 150])
def test_threads_decode_the_same_as_none(tmp_path, n):
    write_images(tmp_path, n, (10, 8), mode="RGB")
    assert decode(names_in(tmp_path), threads=4).equal(decode(names_in(tmp_path), threads=1))


@settings(max_examples=30, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["good", "good", "good", "other size", "junk", "gone"]), min_size=2, max_size=70),
    threads=st.integers(2, 5),
)
def test_threads_raise_the_same_error_after_the_same_images_as_none(kinds, threads):
    def read(name: str, *_: object) -> np.ndarray:
        kind = name.split()[1]
        if kind == "junk":
            raise UnreadableImageError(f"{name} is broken")
        if kind == "gone":
            raise OSError(name)
        return np.zeros((1, 2, 3 if kind == "good" else 4), np.uint8)

    def outcome(threads: int) -> tuple[int, str]:
        decoded = 0

        def count(images: np.ndarray, n: int) -> None:
            nonlocal decoded
            decoded = n

        try:
            decode([f"{i} {kind}" for i, kind in enumerate(["good", *kinds])], None, threads, count)
        except Exception as error:
            return decoded, repr(error)
        return decoded, ""

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(decoding, "read_image", read)
        assert outcome(threads) == outcome(1)


def test_ctrl_c_waits_for_the_images_that_threads_decode_and_not_for_their_tasks(monkeypatch):
    began = []

    def read(name: str, *_: object) -> np.ndarray:
        began.append(name)
        time.sleep(0.003)
        return np.zeros((1, 2, 2), np.uint8)

    def interrupt(images: np.ndarray, n: int) -> None:
        if n == 2:
            began.clear()
            raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "read_image", read)
    with pytest.raises(KeyboardInterrupt):
        decode([str(i) for i in range(300)], None, 2, interrupt)
    assert len(began) <= 4


@pytest.mark.parametrize(("side", "threaded"), [(16, False), (100, True)], ids=["tiny", "photographs"])
def test_only_big_files_are_decoded_in_threads(tmp_path, monkeypatch, side, threaded):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    write_images(tmp_path, 4, (side, side), mode="RGB")  # noise: about three bytes a pixel
    threads = []
    monkeypatch.setattr(decoding, "read_image", lambda *args: threads.append(threading.current_thread()) or read(*args))
    read = read_image
    found, _ = images_in(tmp_path).tensors()
    assert any(thread is not threading.main_thread() for thread in threads) is threaded
    assert found.equal(decode(names_in(tmp_path)))


def test_a_number_as_the_size_is_a_square(tmp_path):
    write_images(tmp_path, 2, (6, 4))
    assert images_in(tmp_path, 3).tensors()[0].shape == (2, 1, 3, 3)
    assert images_in(tmp_path, (3, 5)).tensors()[0].shape == (2, 1, 3, 5)


def test_images_one_by_one_are_the_same_in_three_channels(tmp_path):
    write_images(tmp_path, 3, (5, 4))
    images = images_in(tmp_path)
    whole, labels = images.tensors()
    assert len(images) == 3
    assert labels.tolist() == [0, 0, 0]
    for i in range(3):
        image, label = images[i]
        assert image.equal(whole[i].expand(3, -1, -1))
        assert label == 0


def test_the_bytes_that_decoded_images_take_are_never_guessed_too_low(tmp_path):
    assert images_in(tmp_path).decoded_bytes() == 0
    noise("L").save(tmp_path / "0.png")
    assert images_in(tmp_path).decoded_bytes() >= 4 * 6
    noise("RGB").save(tmp_path / "1.png")  # now all become coloured
    assert images_in(tmp_path).decoded_bytes() >= images_in(tmp_path).tensors()[0].numel()


# --- the cache


def test_the_next_time_nothing_is_decoded(tmp_path, opened):
    write_images(tmp_path / "data", 3)
    first, _ = images_in(tmp_path / "data").tensors()
    assert sorted(set(opened)) == ["0.png", "1.png", "2.png"]
    opened.clear()
    again, labels = images_in(tmp_path / "data").tensors()
    assert opened == []
    assert again.equal(first)
    assert (again.dtype, labels.tolist()) == (torch.uint8, [0, 0, 0])


def change(folder: Path) -> None:
    file = folder / "1.png"
    noise("L", (28, 28), seed=5).save(file)
    os.utime(file, ns=(1, 1))  # an older time is another time too


def touch(folder: Path) -> None:
    os.utime(folder / "0.png", ns=(2, 2))


def add(folder: Path) -> None:
    write_images(folder, 4)


def remove(folder: Path) -> None:
    (folder / "1.png").unlink()


def rename(folder: Path) -> None:
    (folder / "0.png").rename(folder / "9.png")


def repaint(folder: Path) -> None:
    file = folder / "0.png"
    status = file.stat()
    Image.new("L", (28, 28), 7).save(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same time, another size


@pytest.mark.parametrize("what", [change, touch, add, remove, rename, repaint])
def test_files_that_are_not_as_they_were_are_decoded_again(tmp_path, opened, what):
    folder = tmp_path / "data"
    write_images(folder, 3)
    images_in(folder).tensors()
    what(folder)
    opened.clear()
    found, _ = images_in(folder).tensors()
    assert set(opened) == {Path(name).name for name in names_in(folder)}
    assert found.equal(decode(names_in(folder)))


def test_another_size_is_another_entry_of_the_cache(tmp_path, opened):
    write_images(tmp_path / "data", 3)
    whole, small = (images_in(tmp_path / "data", size).tensors()[0] for size in (None, 4))
    opened.clear()
    assert images_in(tmp_path / "data").tensors()[0].equal(whole)
    assert images_in(tmp_path / "data", 4).tensors()[0].equal(small)
    assert opened == []


@pytest.mark.parametrize(
    "content",
    [b"", b"no json", b"\x80\x04}.", b"[1]", b"null", b'{"shape": [2, 1, 28, 28]}', b'{"shape": [-1, 1]}', None],
    ids=repr,
)
def test_a_cache_that_is_damaged_is_made_anew(tmp_path, empty_home, opened, content):
    write_images(tmp_path / "data", 2)
    wanted, _ = images_in(tmp_path / "data").tensors()
    (file,) = (empty_home / "cache").iterdir()
    whole = file.read_bytes()
    if content is None:
        file.write_bytes(whole[: len(whole) // 2])
    else:
        file.write_bytes(content.ljust(cache.HEADER) + whole[cache.HEADER :])
    assert images_in(tmp_path / "data").tensors()[0].equal(wanted)
    opened.clear()
    assert images_in(tmp_path / "data").tensors()[0].equal(wanted)
    assert opened == []


def test_the_cache_is_one_file_in_the_home_and_none_in_the_data(tmp_path, empty_home):
    write_images(tmp_path / "data", 2)
    images_in(tmp_path / "data").tensors()
    add(tmp_path / "data")
    images_in(tmp_path / "data").tensors()  # in place of the first
    assert len(list((empty_home / "cache").iterdir())) == 1
    assert [path.name for path in sorted((tmp_path / "data").iterdir())] == ["0.png", "1.png", "2.png", "3.png"]


def test_a_home_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINIFAST_HOME", str(tmp_path / "file" / "home"))
    write_images(tmp_path / "data", 2)
    assert images_in(tmp_path / "data").tensors()[0].shape == (2, 1, 28, 28)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("coloured", [None, 0, 5, 9])
@pytest.mark.parametrize("threads", [1, 2])
def test_it_is_written_in_parts_while_others_are_decoded(coloured, threads, tmp_path, monkeypatch, opened):
    monkeypatch.setattr(cache, "PART", 3 * 28 * 28)
    monkeypatch.setattr(ImageFiles, "_threads", lambda self: threads)
    write_images(tmp_path / "data", 10)
    if coloured is not None:  # from that one on the whole array has colours
        write_images(tmp_path / "colour", 1, mode="RGB", seed=7)
        (tmp_path / "colour" / "0.png").replace(tmp_path / "data" / f"{coloured}.png")
    wanted, _ = images_in(tmp_path / "data").tensors()
    opened.clear()
    assert images_in(tmp_path / "data").tensors()[0].equal(wanted)
    assert opened == []


def test_a_disk_that_fills_up_or_a_file_that_is_broken_leaves_no_part(tmp_path, monkeypatch, empty_home):
    monkeypatch.setattr(cache, "PART", 3 * 28 * 28)
    write_images(tmp_path / "data", 10)
    written = []

    def fills(file):
        written.append(file)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills)
        assert images_in(tmp_path / "data").tensors()[0].shape == (10, 1, 28, 28)
    assert not (empty_home / "cache").exists()
    (tmp_path / "data" / "8.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"8\.png is not a readable image"):
        images_in(tmp_path / "data").tensors()
    assert not (empty_home / "cache").exists()


def test_a_disk_that_is_full_is_no_error(tmp_path, monkeypatch, empty_home):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    write_images(tmp_path / "data", 2)
    assert images_in(tmp_path / "data").tensors()[0].shape == (2, 1, 28, 28)
    assert not (empty_home / "cache").exists()


def test_no_home_at_all_is_no_error(tmp_path, monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    pwd = pytest.importorskip("pwd")
    monkeypatch.delenv("MINIFAST_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)  # as in a container whose user has no name
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data", 2)
    assert images_in(tmp_path / "data").tensors()[0].shape == (2, 1, 28, 28)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_images_from_the_cache_may_be_changed_without_changing_it(tmp_path):
    write_images(tmp_path / "data", 2)
    wanted, _ = images_in(tmp_path / "data").tensors()
    images_in(tmp_path / "data").tensors()[0].zero_()
    assert images_in(tmp_path / "data").tensors()[0].equal(wanted)


def test_a_cache_that_is_replaced_leaves_what_others_read_from_it(tmp_path):
    write_images(tmp_path / "data", 2)
    images_in(tmp_path / "data").tensors()
    from_cache, _ = images_in(tmp_path / "data").tensors()
    before = from_cache.clone()
    add(tmp_path / "data")
    images_in(tmp_path / "data").tensors()
    assert from_cache.equal(before)


def test_threads_that_begin_together_get_the_same_and_leave_one_file(tmp_path, empty_home):
    write_images(tmp_path / "data", 20)
    wanted = decode(names_in(tmp_path / "data"))
    found, start = [], threading.Barrier(4)

    def run():
        start.wait()
        for _ in range(3):
            found.append(images_in(tmp_path / "data").tensors()[0].clone())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    assert all(images.equal(wanted) for images in found)
    assert len(list((empty_home / "cache").iterdir())) == 1


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_that_begin_together_get_the_same_and_leave_one_file(tmp_path, empty_home):
    write_images(tmp_path / "data", 20)
    context = multiprocessing.get_context("fork")
    start, sums = context.Barrier(3), context.Queue()

    def run():
        start.wait(30)
        sums.put(images_in(tmp_path / "data").tensors()[0].sum().item())

    processes = [context.Process(target=run) for _ in range(3)]
    for process in processes:
        process.start()
    found = [sums.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert found == [decode(names_in(tmp_path / "data")).sum().item()] * 3
    assert len(list((empty_home / "cache").iterdir())) == 1
