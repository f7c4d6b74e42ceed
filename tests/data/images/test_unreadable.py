"""All unreadable images are named at once, found before training, or left out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minifast import DataError, ImageDataBunch, SegmentationDataBunch, get_image_files
from minifast.data import verify_images
from minifast.data.images import decoding, sources


def write_images(folder: Path, n: int, bad: set[int]) -> list[Path]:
    """Write ``n`` images of two classes, those in ``bad`` broken in one of three ways, and return the broken ones."""
    broken = []
    for i in range(n):
        file = folder / "ab"[i % 2] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(file)
        if i in bad:
            content = file.read_bytes()
            file.write_bytes([b"", b"not an image", content[: len(content) // 2]][i % 3])
            broken.append(file)
    return sorted(broken)


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "images"


def bunch(images: Path, **options) -> ImageDataBunch:
    return ImageDataBunch.from_folder(images, valid_pct=0.25, seed=0, bs=4, num_workers=0, device="cpu", **options)


@pytest.mark.parametrize("bad", [{0, 5}, {3, 7, 9}, {0, 1, 2}])
def test_all_are_found_by_one_function(images, bad):
    broken = write_images(images, 20, bad)
    assert verify_images(images) == broken
    assert verify_images(get_image_files(images, recurse=True)) == broken
    assert verify_images([]) == []


@pytest.mark.parametrize("bad", [{0, 5}, {3, 7, 9}])
def test_the_error_names_all(images, bad):
    broken = write_images(images, 20, bad)
    with pytest.raises(DataError, match=f"^{len(bad)} of 20 images cannot be read: ") as caught:
        bunch(images)
    assert all(str(file) in str(caught.value) for file in broken)
    assert "on_bad_image='skip'" in str(caught.value)
    assert "on_bad_image" not in caught.value.cli_message
    assert str(broken[0]) + " is not a readable image" in str(caught.value)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("where", [["valid"], ["train", "valid"], ["train", "test"], ["valid", "test"]])
@pytest.mark.parametrize("memory", [2**30, 0])
def test_the_error_names_those_of_all_parts(images, where, memory):
    broken = [
        file
        for part in ("train", "valid", "test")
        for file in write_images(images / part, 8, {3, 6} if part in where else set())
    ]
    if memory == 0 and "train" in where:
        broken += write_images(images / "train", 8, {0, 3, 6})[:1]
    with pytest.raises(DataError, match=f"^{len(broken)} of 24 images cannot be read: ") as caught:
        ImageDataBunch.from_folder(images, test="test", bs=4, num_workers=0, device="cpu", memory=memory)
    assert all(str(file) in str(caught.value) for file in broken)
    assert str(caught.value).count("Replace or remove") == caught.value.cli_message.count("Replace or remove") == 1


def test_a_long_list_is_in_a_file(images):
    broken = write_images(images, 40, set(range(2, 32, 2)))
    with pytest.raises(DataError, match=r"^15 of 40 images .* and 5 more\. All are listed in unreadable_images\.txt\."):
        bunch(images)
    assert Path("unreadable_images.txt").read_text().splitlines() == list(map(str, broken))


def test_a_single_one_is_named_as_before(images):
    write_images(images, 20, {4})
    with pytest.raises(DataError, match=r"^\S*004\.png is not a readable image, .* Replace or remove it\.$"):
        bunch(images)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_unreadable_images_are_left_out(images, memory, capsys):
    broken = write_images(images, 20, {0, 3, 7})
    data = bunch(images, on_bad_image="skip", memory=memory)
    assert f"3 of 20 images cannot be read and are left out: {broken[0]}" in capsys.readouterr().out
    assert len(data.train_ds) + len(data.valid_ds) == 17
    for part in (data.train_dl, data.valid_dl):
        for x, y in part:
            assert torch.equal((x[:, 0, 0, 0] * 255).round().long() % 2, y)  # the labels are still those of the files


def test_the_check_is_done_once(images, capsys, monkeypatch):
    write_images(images, 20, {0, 3, 7})
    bunch(images, on_bad_image="skip")
    monkeypatch.setattr(decoding, "read_image", None)  # everything is in the cache
    bunch(images, on_bad_image="skip")
    assert capsys.readouterr().out.count("3 of 20 images") == 2


def test_lists_and_test_folders_are_checked_too(images, capsys):
    broken = write_images(images, 20, {0, 3})
    (images / "new").mkdir()
    (images / "new" / "x.png").write_bytes(b"nothing")
    Image.new("RGB", (8, 8)).save(images / "new" / "y.png")
    files = get_image_files(images / "a") + get_image_files(images / "b")
    data = ImageDataBunch.from_lists(
        images, files, [file.parent.name for file in files], 0.25, seed=0, bs=4, test="new", on_bad_image="skip",
        device="cpu",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert all(str(file) in out for file in broken)
    assert (len(data.train_ds) + len(data.valid_ds), len(data.test_ds)) == (18, 1)


def test_nothing_is_left_of_broken_images(images):
    write_images(images, 6, set(range(6)))
    with pytest.raises(DataError, match="None of the 6 images can be read"):
        bunch(images, on_bad_image="skip")


def test_a_misspelt_word_is_an_error(images):
    write_images(images, 6, set())
    with pytest.raises(ValueError, match="`on_bad_image` must be one of 'raise', 'skip', got 'ignore'"):
        bunch(images, on_bad_image="ignore")


# --- images read batch by batch


def read_all(data: ImageDataBunch) -> None:
    for part in (data.train_dl, data.valid_dl):
        list(part)


@pytest.mark.parametrize("bad", [{3}, {4, 7}, {1, 6, 9, 12}, {3, 5, 8}])  # of each, one at least has no header
def test_files_read_in_batches_are_checked_before_the_training(images, bad):
    broken = write_images(images, 20, bad)
    in_memory, in_batches = ([], [])
    for memory, said in ((2**30, in_memory), (0, in_batches)):
        with pytest.raises(DataError) as caught:
            bunch(images, memory=memory)
        said.append((str(caught.value).split(" The first: ")[0], caught.value.cli_message.split(" The first: ")[0]))
    assert in_batches == in_memory
    assert all(str(file) in in_batches[0][0] for file in broken)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_file_among_those_names_how_to_find_the_others(images, num_workers):
    write_images(images, 20, set())
    broken = [images / "b" / "005.png", images / "a" / "008.png"]
    for file in broken:
        file.write_bytes(file.read_bytes()[:-24])  # it still has a header
    data = ImageDataBunch.from_folder(
        images, valid_pct=0.25, seed=0, bs=4, num_workers=num_workers, device="cpu", memory=0
    )
    with pytest.raises(DataError, match=r"verify_images finds all such files, and on_bad_image='skip'") as caught:
        read_all(data)
    assert any(str(file) in str(caught.value) for file in broken)
    read_all(bunch(images, on_bad_image="skip", memory=0))


def test_only_headers_are_read_before_the_training(images, monkeypatch):
    write_images(images, 20, set())
    decoded, headers = [], []
    read, size = decoding.read_image, sources.upright_size
    monkeypatch.setattr(decoding, "read_image", lambda name, *rest: decoded.append(name) or read(name, *rest))
    monkeypatch.setattr(sources, "upright_size", lambda name: headers.append(name) or size(name))
    bunch(images, memory=0)
    assert len(headers) == len(set(headers)) == 20
    assert len(set(decoded)) < 5  # the size of all, and the type of the inputs


def test_masks_read_in_batches_are_checked_before_the_training(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(8):
            Image.new("L", (8, 8), i % 2).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "masks" / "5.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"masks.5\.png is not a readable image"):
        SegmentationDataBunch.from_folder(tmp_path, ["a", "b"], seed=0, bs=2, memory=0, num_workers=0, device="cpu")


# --- images out of the value range are no broken files


@pytest.mark.parametrize("memory", [2**30, 0])
@pytest.mark.parametrize("broken", [set(), {0}, {3, 7}])
def test_images_out_of_the_value_range_are_not_left_out(images, memory, broken):
    write_images(images, 20, broken)
    for i in (4, 9):
        Image.fromarray(np.float32([[-2, 7.5]])).save(images / "ab"[i % 2] / f"deep{i}.tif")
    options = {"on_bad_image": "skip", "memory": memory, "size": 8}
    with pytest.raises(DataError, match=r"deep\d\.tif has values from -2 to 7\.5, .* value_range=\(-2, 7\.5\) fits"):
        bunch(images, **options)
    data = bunch(images, **options, value_range=(-2, 7.5))
    assert len(data.train_ds) + len(data.valid_ds) == 22 - len(broken)


def test_an_image_out_of_the_value_range_is_not_counted_as_broken(images):
    broken = write_images(images, 20, {0, 3})
    Image.fromarray(np.float32([[-2, 7.5]])).save(images / "b" / "deep.tif")
    with pytest.raises(DataError, match=r"^2 of 21 images cannot be read") as caught:
        bunch(images, size=8)
    assert "deep" not in str(caught.value)
    assert verify_images(images) == sorted([*broken, images / "b" / "deep.tif"])


def test_a_class_without_a_readable_image_is_an_error(images):
    write_images(images, 20, set(range(1, 20, 2)))
    with pytest.raises(DataError, match=r"^No image of the class b can be read, so it cannot be learned\."):
        bunch(images, on_bad_image="skip")


def test_photographs_in_formats_that_pillow_cannot_read_are_named(images):
    write_images(images, 20, set())
    for name in ("IMG_1.HEIC", "IMG_2.cr2"):
        (images / "a" / name).write_bytes(b"?")
    with pytest.warns(UserWarning, match=r"cannot read their format: .*/IMG_1\.HEIC, .*/IMG_2\.cr2\. Convert them"):
        assert len(bunch(images).train_ds) == 15
    (images / "c").mkdir()
    (images / "c" / "IMG_3.heic").write_bytes(b"?")
    with pytest.raises(DataError, match=r"/c has no images; Pillow cannot read .*/IMG_3\.heic, convert them to JPEG\."):
        bunch(images)


def test_an_image_with_too_many_pixels_is_not_called_broken(images, monkeypatch):
    file = write_images(images, 4, set()) or next(images.rglob("*.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(
        DataError, match=r"has more than 40 pixels, which Pillow refuses.*raise PIL\.Image\.MAX_IMAGE_PIX"
    ):
        decoding.read_image(file)


def test_images_that_were_too_large_are_used_once_pillow_allows_them(images, monkeypatch, capsys):
    write_images(images, 20, {3})
    Image.new("RGB", (12, 12)).save(images / "a" / "large.png")
    with monkeypatch.context() as limited:
        limited.setattr(Image, "MAX_IMAGE_PIXELS", 64)
        bunch(images, on_bad_image="skip", size=8)
        assert "2 of 21 images cannot be read" in capsys.readouterr().out
    bunch(images, on_bad_image="skip", size=8)
    assert "1 of 21 images cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tif", "webp", "ppm"])
def test_a_closed_image_says_so(tmp_path, suffix):
    file = tmp_path / f"x.{suffix}"
    Image.new("RGB", (40, 30)).save(file)
    with Image.open(file) as image:
        pass
    if suffix == "webp":  # holds its content
        assert decoding.read_image(image).shape == (3, 30, 40)
        return
    with pytest.raises(DataError, match="The image is closed and was never decoded"):
        decoding.read_image(image)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_data_of_a_relative_path_are_read_from_another_folder_too(images, tmp_path, monkeypatch, memory):
    write_images(images, 20, set())
    monkeypatch.chdir(images.parent)
    data = bunch(Path("images"), memory=memory)
    lists = ImageDataBunch.from_name_func(
        "images", get_image_files("images", recurse=True), lambda file: file.parent.name,
        seed=0, bs=4, num_workers=0, device="cpu", memory=memory,
    )  # fmt: skip
    monkeypatch.chdir(tmp_path / "work")
    for part in (data, lists):
        read_all(part)
        assert part.valid_ds.items[0].is_file()


def test_a_relative_and_an_absolute_path_share_a_cache(images, monkeypatch):
    write_images(images, 20, set())
    bunch(images)
    monkeypatch.chdir(images.parent)
    monkeypatch.setattr(decoding, "decode", lambda *_: pytest.fail("decoded again"))
    bunch(Path("images"))
    bunch(images)


@pytest.mark.parametrize(("memory", "error"), [(-1, ValueError), ("2GB", TypeError), (None, TypeError)])
def test_a_limit_of_memory_that_is_no_number_is_an_error(images, memory, error):
    write_images(images, 20, set())
    with pytest.raises(error, match="`memory` must be"):
        bunch(images, memory=memory)
