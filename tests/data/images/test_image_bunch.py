"""ImageDataBunch from folders: images in memory or from files, shown, predicted, trained on."""

from __future__ import annotations

import contextlib
import gc
import pickle
import re
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow, write_images
from PIL import Image

from minifast import (
    DataError,
    DatasetType,
    DeviceDataLoader,
    ImageDataBunch,
    Learner,
    MinifastError,
    SegmentationDataBunch,
    TensorLoader,
    accuracy,
    get_image_files,
    imagenet_stats,
    simple_cnn,
)
from minifast.data.images import decoding, sources


def write_tree(root: Path, train: int = 6, valid: int = 3, size: tuple[int, int] = (6, 5), mode: str = "L") -> Path:
    """Write two classes: ``train`` and ``valid`` images of each, cats dark and dogs bright, no two alike."""
    parts = (("train", "cat", train), ("train", "dog", train), ("valid", "cat", valid), ("valid", "dog", valid))
    for seed, (split, name, n) in enumerate(parts):
        label, folder = seed % 2, root / split / name
        write_images(folder, n, size, mode, seed)
        for file in folder.iterdir():
            with Image.open(file) as image:
                shifted = image.point(lambda value, label=label: value // 2 + 127 * label)
            shifted.save(file)
    return root


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_tree(tmp_path / "data")


def bunch(path: Path, **kwargs) -> ImageDataBunch:
    return ImageDataBunch.from_folder(path, **({"device": "cpu", "bs": 4, "seed": 0} | kwargs))


@pytest.fixture
def uncollected():
    """Keep the garbage collector away, so that what is left to it can be seen."""
    gc.disable()
    yield
    gc.enable()


def all_of(loader) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*loader, strict=True)
    return torch.cat(x), torch.cat(y)


def keys(*loaders) -> list[bytes]:
    """Each image of the loaders as bytes, to compare sets of them."""
    return [image.numpy().tobytes() for loader in loaders for image in all_of(loader)[0]]


def snapshot(root: Path) -> dict[str, tuple]:
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(root.rglob("*"))
    }


# --- a small tree


def test_classes_are_the_folders_and_images_floats_of_three_channels(tree):
    data = bunch(tree)
    assert (data.classes, data.c, data.path, data.batch_size) == (["cat", "dog"], 2, tree, 4)
    assert [len(ds) for ds in (data.train_ds, data.valid_ds)] == [12, 6]
    assert [len(dl) for dl in data.dls] == [3, 1]
    assert data.test_dl is None
    x, y = data.one_batch()
    assert (x.shape, x.dtype, y.dtype) == ((4, 3, 5, 6), torch.float32, torch.int64)
    assert isinstance(data.loss_func, torch.nn.CrossEntropyLoss)


def test_each_image_has_its_own_label(tree):
    for loader in bunch(tree, memory=2**30).dls + bunch(tree, memory=0, num_workers=0).dls:
        x, y = all_of(loader)
        assert (x.mean((1, 2, 3)) > 0.5).long().equal(y)


def test_validation_comes_in_the_order_of_the_files(tree):
    files = sorted((tree / "valid" / "cat").iterdir()) + sorted((tree / "valid" / "dog").iterdir())
    x, y = all_of(bunch(tree).valid_dl)
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    for file, image in zip(files, x, strict=True):
        with Image.open(file) as opened:
            assert np.array_equal(np.asarray(opened) / np.float32(255), image[0].numpy())


def test_the_folders_may_have_other_names(tree):
    (tree / "train").rename(tree / "learn")
    (tree / "valid").rename(tree / "check")
    data = bunch(tree, train="learn", valid="check")
    assert [len(ds) for ds in (data.train_ds, data.valid_ds)] == [12, 6]


def test_the_path_may_be_a_string_or_begin_at_home(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree.parent))
    assert bunch(str(tree)).classes == bunch("~/data").classes == ["cat", "dog"]
    assert bunch("~/data").path == tree


def test_what_is_hidden_or_no_image_is_left_out_and_folders_in_a_class_are_taken_in(tree):
    (tree / "train" / "cat" / "notes.txt").write_text("no image")
    (tree / "train" / "cat" / ".DS_Store").touch()
    (tree / "train" / ".cache").mkdir()
    (tree / "labels.csv").touch()
    write_images(tree / "train" / "cat" / "more", 2, (6, 5), seed=50)
    data = bunch(tree)
    assert data.classes == ["cat", "dog"]
    assert len(data.train_ds) == 14
    assert all_of(bunch(tree, bs=14).train_dl)[1].sum() == 6


def test_the_order_of_training_is_a_function_of_the_seed(tree):
    first, same, other = (bunch(tree, seed=seed) for seed in (1, 1, 2))
    assert [keys(dl) for dl in first.dls] == [keys(dl) for dl in same.dls]
    assert keys(first.train_dl) == keys(same.train_dl)  # the second epoch
    assert keys(bunch(tree, seed=1).train_dl) != keys(other.train_dl)


def test_without_a_seed_torchs_generator_gives_one(tree):
    orders = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        orders.append(keys(bunch(tree, seed=None).train_dl))
    assert orders[0] == orders[1] != orders[2]


def test_a_seed_that_is_given_leaves_the_generator_alone(tree):
    before = torch.get_rng_state()
    data = bunch(tree, memory=0, num_workers=0)
    assert torch.get_rng_state().equal(before)
    for loader in data.dls:
        all_of(loader)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(("bs", "val_bs", "found"), [(5, None, 10), (5, 2, 2), (1, None, 2), (1, 6, 6)])
def test_validation_has_batches_of_its_own_size(tree, bs, val_bs, found):
    data = bunch(tree, bs=bs, val_bs=val_bs)
    assert {len(x) for x, _ in data.train_dl} == {bs}
    assert data.valid_dl.batch_size == found
    assert len(all_of(data.valid_dl)[0]) == 6


def test_classes_may_be_put_in_another_order(tree):
    data = bunch(tree, classes=["dog", "cat"])
    assert data.classes == ["dog", "cat"]
    for loader in data.dls:
        x, y = all_of(loader)
        assert (x.mean((1, 2, 3)) < 0.5).long().equal(y)


@pytest.mark.parametrize("options", [{}, {"valid_pct": 0.25}], ids=["folders", "share"])
def test_classes_may_be_some_of_the_folders(tree, options):
    write_images(tree / "train" / "emu", 4, (6, 5), seed=20)
    write_images(tree / "valid" / "emu", 2, (6, 5), seed=21)
    data = bunch(tree, classes=["emu", "dog"], **options)
    assert data.classes == ["emu", "dog"]
    assert len(data.train_ds) + len(data.valid_ds) == 15
    assert {y for loader in data.dls for y in all_of(loader)[1].tolist()} == {0, 1}
    learn = Learner(data, simple_cnn((3, 4, 3)), silent=True)
    with pytest.raises(DataError, match=r"3 outputs, but the data have 2 classes \(emu, dog\) \(left out: cat\); give"):
        learn.fit(1)


@pytest.mark.parametrize("options", [{}, {"valid_pct": 0.25}])
def test_an_error_about_the_classes_names_the_folders_that_are_left_out(tree, options):
    learn = Learner(bunch(tree, classes=["cat"], **options), simple_cnn((3, 4, 2)), silent=True)
    with pytest.raises(DataError, match=r"one class only, cat, .* name them all \(left out: dog\)\."):
        learn.fit(1)
    assert "name them all (left out: dog)." in str(learn.check(1))


@pytest.mark.parametrize("options", [{}, {"valid_pct": 0.25}], ids=["folders", "share"])
@pytest.mark.parametrize(
    ("classes", "test", "left_out"),
    [(None, "test", []), (["cat", "dog"], "test", []), (["cat", "dog"], None, []), (["dog"], "test", ["cat"])],
)
def test_folders_of_other_parts_are_no_classes(tree, monkeypatch, options, classes, test, left_out):
    for folder in ("cat", "dog"):
        (tree / "train" / folder).rename(tree / folder)
    (tree / "train").rmdir()
    write_images(tree / "test", 2, (6, 5))
    scanned, scan = [], sources.class_folders
    monkeypatch.setattr(sources, "class_folders", lambda roots, *rest: scanned.extend(roots) or scan(roots, *rest))
    data = bunch(tree, train=".", classes=classes, test=test, **options)
    assert (data.classes, data.left_out) == (classes or ["cat", "dog"], left_out)
    assert scanned == [tree, tree / "valid"]  # each once


def test_a_class_may_be_called_models(tree):
    write_images(tree / "train" / "models", 3, (6, 5), seed=30)
    write_images(tree / "valid" / "models", 3, (6, 5), seed=30)
    assert bunch(tree).classes == ["cat", "dog", "models"]


@pytest.mark.parametrize("memory", [0, 2**30])
def test_data_sets_print_their_size(tree, memory):
    data = bunch(tree, memory=memory, num_workers=0)
    for dataset in (data.train_ds, data.valid_ds):
        assert re.fullmatch(rf"(LoadedImages|ImageFiles)\({len(dataset)} (samples|images)\)", repr(dataset))


def test_the_learners_own_folder_is_no_class(tree):
    flat = tree / "train"
    Learner(bunch(flat, valid_pct=0.2), simple_cnn((3, 2)), path=flat, silent=True).save("a")
    assert (flat / "models" / "a.pth").is_file()
    assert bunch(flat, valid_pct=0.2).classes == ["cat", "dog"]


def test_a_test_folder_has_images_without_classes(tree):
    write_images(tree / "unknown", 5, (6, 5), seed=40)
    data = bunch(tree, test="unknown", bs=2)
    assert len(data.dls) == 3
    assert len(data.test_ds) == 5
    x, _ = all_of(data.test_dl)
    files = [tree / "unknown" / f"{i}.png" for i in range(5)]
    assert x.equal(torch.stack([data.encode(file)[0] for file in files]).cpu() / 1)
    predictions, _ = Learner(data, simple_cnn((3, 2)), silent=True).get_preds(DatasetType.Test)
    assert predictions.shape == (5, 2)


def test_grey_and_coloured_images_may_be_mixed(tree):
    write_images(tree / "train" / "dog", 1, (6, 5), "RGB", seed=60)
    for data in (bunch(tree), bunch(tree, memory=0, num_workers=0)):
        x, _ = all_of(data.train_dl)
        coloured = (x[:, 0] != x[:, 1]).flatten(1).any(1)
        assert coloured.sum() == 1
        assert all_of(data.valid_dl)[0].shape == (6, 3, 5, 6)


@pytest.mark.parametrize(("size", "shape"), [(4, (4, 4)), ((3, 8), (3, 8))])
@pytest.mark.parametrize("memory", [0, 2**30])
def test_a_size_brings_images_of_all_sizes_to_one(tree, size, shape, memory):
    write_images(tree / "train" / "dog", 2, (20, 10), seed=70)
    data = bunch(tree, size=size, memory=memory, num_workers=0)
    assert {tuple(x.shape[1:]) for loader in data.dls for x, _ in loader} == {(3, *shape)}


def test_nothing_in_the_data_folder_is_changed(tree):
    before = snapshot(tree)
    for options in ({}, {"memory": 0, "num_workers": 0}, {"valid_pct": 0.3}):
        data = bunch(tree, **options)
        data.one_batch()
        data.normalize().show_batch()
    assert snapshot(tree) == before


# --- a share at random for validation


@pytest.mark.parametrize(("share", "n_valid"), [(0.01, 1), (0.2, 3), (0.5, 9), (0.99, 17)])
def test_a_share_of_all_images_is_chosen_for_validation(tree, share, n_valid):
    data = bunch(tree, valid_pct=share, bs=1)
    train, valid = keys(data.train_dl), keys(data.valid_dl)
    assert (len(train), len(valid)) == (18 - n_valid, n_valid)
    assert set(train).isdisjoint(valid)
    assert sorted(train + valid) == sorted(keys(*bunch(tree, bs=1).dls))


def test_the_choice_is_a_function_of_the_seed(tree):
    chosen = [sorted(keys(bunch(tree, valid_pct=0.3, seed=seed).valid_dl)) for seed in (1, 1, 2, 3, 4)]
    assert chosen[0] == chosen[1]
    assert len({tuple(choice) for choice in chosen}) > 1


def test_images_may_lie_in_class_folders_alone(tree):
    data = bunch(tree / "train", valid_pct=0.25)
    assert data.classes == ["cat", "dog"]
    assert [len(ds) for ds in (data.train_ds, data.valid_ds)] == [9, 3]


def test_a_test_folder_beside_class_folders_is_no_class(tree):
    write_images(tree / "train" / "unknown", 5, (6, 5), seed=40)
    data = bunch(tree / "train", valid_pct=0.25, test="unknown")
    assert data.classes == ["cat", "dog"]
    assert [len(ds) for ds in (data.train_ds, data.valid_ds, data.test_ds)] == [9, 3, 5]


@pytest.mark.parametrize(
    ("share", "error"), [(0, ValueError), (-0.1, ValueError), (1, ValueError), (float("nan"), ValueError)]
)
def test_a_share_must_leave_something_on_both_sides(tree, share, error):
    with pytest.raises(error, match=r"^`valid_pct` must be"):
        bunch(tree, valid_pct=share)


def test_a_valid_pct_that_is_not_a_number_raises(tree):
    with pytest.raises(TypeError, match=r"^`valid_pct` must be a number, got '0.2' of type str"):
        bunch(tree, valid_pct="0.2")


def test_one_image_cannot_be_shared(tmp_path):
    write_images(tmp_path / "cat", 1)
    with pytest.raises(DataError, match=r"at least 2 images, got 1"):
        bunch(tmp_path, valid_pct=0.5, bs=1)


@pytest.mark.parametrize("home", ["home", "file/in/the/way"])
def test_each_file_is_decoded_once_also_without_a_cache(tree, monkeypatch, home):
    (tree.parent / "file").touch()
    monkeypatch.setenv("MINIFAST_HOME", str(tree.parent / home))
    opened, read = [], decoding.read_image
    monkeypatch.setattr(decoding, "read_image", lambda file, *args: opened.append(str(file)) or read(file, *args))
    bunch(tree, valid_pct=0.5)
    files = {str(file) for file in tree.rglob("*.png")}
    assert set(opened) == files
    assert len(opened) <= len(files) + 2  # the first is read to learn its size


# --- from the files, batch by batch


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        *(({}, 0), ({"valid_pct": 0.3}, 0), ({"size": 4}, 0), ({"valid_pct": 0.3}, 2)),
        *slow(({}, 2), ({"size": 4}, 2)),
    ],
)
def test_a_set_that_does_not_fit_comes_in_the_same_batches(tree, workers, options):
    write_images(tree / "train" / "dog", 1, (6, 5), "RGB", seed=60)
    write_images(tree / "unknown", 3, (6, 5), seed=61)
    kept = bunch(tree, test="unknown", **options)
    streamed = bunch(tree, test="unknown", memory=0, num_workers=workers, **options)
    assert all(isinstance(dl, TensorLoader) for dl in kept.dls)
    assert not any(isinstance(dl, TensorLoader) for dl in streamed.dls)
    for wanted, found in zip(kept.dls, streamed.dls, strict=True):
        for _ in range(2):  # two epochs, two orders
            batches = list(zip(wanted, found, strict=True))
            assert len(batches) == len(wanted) == len(found)
            assert all(x.equal(x2) and y.equal(y2) for (x, y), (x2, y2) in batches)
            assert {(x.dtype, y.dtype) for _, (x, y) in batches} == {(torch.float32, torch.int64)}


@pytest.mark.parametrize(("n", "bs"), [(1, 64), (32, 64), (33, 64), (3, 2)])  # of each of the two classes
def test_from_the_files_too_a_last_batch_is_left_out_unless_it_is_the_only_one(tmp_path, n, bs):
    write_tree(tmp_path, n, 1, size=(2, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There are")
        kept, streamed = bunch(tmp_path, bs=bs), bunch(tmp_path, bs=bs, memory=0, num_workers=0)
    sizes = [[len(x) for x, _ in data.train_dl] for data in (kept, streamed)]
    assert sizes[0] == sizes[1] == [min(bs, 2 * n)] * max(1, 2 * n // bs)


def test_the_budget_decides(tree):
    assert isinstance(bunch(tree, memory=18 * 3 * 5 * 6).train_dl, TensorLoader)
    streamed = bunch(tree, memory=18 * 5 * 6 - 1, num_workers=0)
    assert isinstance(streamed.train_dl, DeviceDataLoader)


def test_one_grey_image_in_front_does_not_hide_the_size_of_the_coloured_ones(tmp_path):
    write_tree(tmp_path, 6, 3, mode="RGB")
    write_images(tmp_path / "train" / "cat", 1, (6, 5))
    write_images(tmp_path / "valid" / "cat", 1, (6, 5))
    assert isinstance(bunch(tmp_path, memory=18 * 3 * 5 * 6 - 1, num_workers=0).train_dl, DeviceDataLoader)


def test_a_set_that_does_not_fit_leaves_no_cache(tree, empty_home):
    all_of(bunch(tree, memory=0, num_workers=0).train_dl)
    assert not empty_home.exists()


def test_workers_are_sent_the_names_of_files_and_no_images(tree):
    def sent() -> int:
        return len(pickle.dumps(bunch(tree, memory=0, num_workers=0).train_ds))

    before = sent()
    bunch(tree)  # leaves all images in the cache
    assert sent() == before


def test_looking_at_a_batch_from_the_files_keeps_the_order(tree):
    looked, other = (bunch(tree, memory=0, num_workers=0) for _ in range(2))
    looked.one_batch()
    looked.show_batch()
    assert keys(looked.train_dl) == keys(other.train_dl)


def test_the_finder_keeps_the_order_of_images_from_files(tree):
    found, other = (bunch(tree, memory=0, num_workers=0) for _ in range(2))
    Learner(found, simple_cnn((3, 2)), silent=True).lr_find(num_it=5)
    assert keys(found.train_dl) == keys(other.train_dl)


def cut_off(file: Path) -> None:
    """Remove the end of an image, not its header, which is read before the training."""
    file.write_bytes(file.read_bytes()[:-24])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named_when_its_batch_is_read(tree, workers):
    cut_off(tree / "train" / "dog" / "3.png")
    data = bunch(tree, memory=0, num_workers=workers)
    said = r"^\S*dog/3\.png is not a readable image, .*\. Replace or remove it\. \S*verify_images [^\n]* out\.$"
    with pytest.raises(DataError, match=said):
        all_of(data.train_dl)


def test_workers_that_met_an_error_do_not_wait_for_the_garbage_collector(tree, uncollected):
    cut_off(tree / "train" / "dog" / "3.png")
    data = bunch(tree, memory=0, num_workers=2)
    there = weakref.ref(data.train_dl)
    with contextlib.suppress(DataError):
        all_of(data.train_dl)
    del data
    assert there() is None  # the collector would wait five seconds for each worker


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_different_sizes_from_files_are_named_with_the_way_out(tree, workers):
    write_images(tree / "train" / "dog", 1, (9, 9))
    with pytest.raises(
        DataError,
        match=r"^Images must have the same size, but \S*/\d\.png is .*/\d\.png is .*Give a size .*size=224\.$",
    ):
        all_of(bunch(tree, memory=0, num_workers=workers).train_dl)


@pytest.mark.parametrize("memory", [0, 2**30])
def test_data_and_learner_go_when_nobody_holds_them(tree, uncollected, memory):
    data = bunch(tree, memory=memory, num_workers=0).normalize(imagenet_stats)
    learn = Learner(data, simple_cnn((3, 2)), silent=True)
    learn.fit(1)
    learn.validate()
    there = [weakref.ref(thing) for thing in (data, data.train_dl, learn, learn.model)]
    del data, learn
    assert [thing() for thing in there] == [None] * 4


def test_a_learner_trains_the_same_from_memory_and_from_files(tree):
    losses = []
    for options in ({}, {"memory": 0, "num_workers": 0}):
        torch.manual_seed(0)
        model = torch.nn.Sequential(simple_cnn((3, 8)), torch.nn.Dropout(), torch.nn.Linear(8, 2))
        learn = Learner(bunch(tree, **options), model, silent=True)
        learn.fit(3, 1e-2)
        losses.append(learn.recorder.raw_losses)
    assert losses[0] == losses[1]


# --- what goes wrong, before work is lost


@pytest.mark.parametrize("options", [{}, {"valid_pct": 0.2}])
@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_missing_folder_is_named(tmp_path, name, options):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=rf"^There is no folder .*/{name}; check the path\.$"):
        bunch(tmp_path / name, **options)


@pytest.mark.parametrize("name", ["train", "valid"])
def test_a_missing_part_is_named_with_what_is_there_and_both_ways_out(tree, name):
    (tree / name).rename(tree / f"{name}ing")
    (tree / "labels.csv").touch()
    said = rf"has no folder {name}; it has .*{name}ing.*\. Did you mean {name}ing\? .*`{name}`.*valid_pct=0\.2"
    with pytest.raises(DataError, match=said) as error:
        bunch(tree)
    assert "labels.csv" not in str(error.value)


@pytest.mark.parametrize("name", ["triangle", "trai", "training", "valide"])
def test_class_folders_are_not_taken_for_a_misspelled_part(name, tmp_path):
    for folder in (name, "circle"):
        write_images(tmp_path / folder, 2, (4, 4))
    with pytest.raises(DataError, match=rf"it has circle, {name}\. Pass valid_pct=0\.2 .*`train`\.$") as error:
        bunch(tmp_path)
    assert re.search(
        r"\. Give --valid-pct 0\.2 .*, or move the class folders into folders train and valid\.$",
        error.value.cli_message,
    )
    bunch(tmp_path, valid_pct=0.5, bs=1)


@pytest.mark.parametrize("memory", [0, 2**30])
@pytest.mark.parametrize("test", [None, "test", "valid"])
def test_valid_pct_splits_the_images_of_both_parts_without_the_test_folder(test, memory, tree):
    write_images(tree / "test", 2, (6, 5))
    data = bunch(tree, valid_pct=0.25, test=test, memory=memory, num_workers=0)
    used = {path.relative_to(tree).parts[0] for part in (data.train_ds, data.valid_ds) for path in part.items}
    assert used == {"train", "valid"} - {test}


def test_classes_that_are_a_text_raise(tree):
    with pytest.raises(TypeError, match=r"^`classes` must be a list of names, got the text 'cat'; give \['cat'\]"):
        bunch(tree, classes="cat")
    with pytest.raises(TypeError, match=r"^`codes` must be a list of names, got the text 'cat'"):
        SegmentationDataBunch.from_label_func(tree, get_image_files(tree, recurse=True), str, "cat")


def test_an_empty_folder_has_no_parts(tmp_path):
    with pytest.raises(DataError, match=r"has no folders of images; give a folder with one folder per class in train"):
        bunch(tmp_path)


def test_a_missing_test_folder_is_named(tree):
    with pytest.raises(DataError, match=r"has no folder tests; it has train, valid") as error:
        bunch(tree, test="tests")
    assert "valid_pct" not in str(error.value)  # that would be no way out here


def test_an_empty_test_folder_is_named(tree):
    (tree / "unknown").mkdir()
    for memory in (0, 2**30):
        with pytest.raises(DataError, match=r"/unknown has no images"):
            bunch(tree, test="unknown", memory=memory)


@pytest.mark.parametrize("options", [{}, {"valid_pct": 0.2}])
def test_an_empty_class_folder_is_named(tree, options):
    (tree / "train" / "emu").mkdir()
    (tree / "train" / "emu" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"^The class folder .*/train/emu has no images\. "):
        bunch(tree, **options)


def test_images_without_class_folders_are_an_error_in_words(tmp_path):
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "valid", 2)
    with pytest.raises(DataError, match=r"/train has no class folders\. Put the images of each class in a folder"):
        bunch(tmp_path)


def test_a_validation_folder_without_images_is_named(tree):
    for file in tree.glob("valid/*/*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"/valid has no images"):
        bunch(tree)


def test_a_class_that_stands_only_in_valid_is_named(tree):
    write_images(tree / "valid" / "emu", 1, (6, 5))
    with pytest.raises(DataError, match=r"^The class emu is in .*/valid but not in the training folder"):
        bunch(tree)


def test_a_class_that_stands_only_in_train_is_learnt_with_a_warning(tree):
    write_images(tree / "train" / "emu", 1, (6, 5))
    with pytest.warns(UserWarning, match=r"^The validation set has no images of emu, .* this class\. Add ") as caught:
        data = bunch(tree)
    assert len(caught) == 1
    assert data.classes
    assert data.classes == ["cat", "dog", "emu"]
    assert len(data.valid_ds) == 6


def test_a_class_that_is_misspelt_is_named_with_what_is_there(tree):
    with pytest.raises(DataError, match=r"no folder dgo.*Did you mean dog\?"):
        bunch(tree, classes=["cat", "dgo"])


def test_a_class_that_is_given_twice_is_named(tree):
    with pytest.raises((DataError, ValueError), match=r"classes names 'cat' twice"):
        bunch(tree, classes=["cat", "dog", "cat"])


def test_images_of_different_sizes_are_named_both(tree):
    write_images(tree / "train" / "dog", 1, (9, 9))
    said = r"cat/0\.png is 6×5 pixels and .*dog/0\.png is 9×9\. Give a size .*, such as size=224\."
    with pytest.raises(DataError, match=said):
        bunch(tree)


def test_images_of_other_sizes_in_the_validation_set_are_named_too(tree):
    for file in tree.glob("valid/*/*.png"):
        Image.new("L", (9, 9)).save(file)
    with pytest.raises(DataError, match=r"train/cat/0\.png is 6×5 pixels and .*valid/cat/0\.png is 9×9\. Give a size"):
        bunch(tree)


@pytest.mark.parametrize("content", [b"", b"text", None], ids=["empty", "text", "cut off"])
@pytest.mark.parametrize("name", ["train/cat/0.png", "valid/dog/2.png"])
def test_a_file_that_is_no_image_is_named(tree, content, name):
    file = tree / name
    file.write_bytes(file.read_bytes()[:45] if content is None else content)
    with pytest.raises(DataError, match=rf"/{name} is not a readable image, or it is truncated"):
        bunch(tree)


def test_fewer_images_than_a_batch_are_one_batch_and_one_warning(tree):
    said = r"^There are 12 training images, fewer than bs=64, so each epoch is one batch\.$"
    with pytest.warns(UserWarning, match=said) as caught:
        data = ImageDataBunch.from_folder(tree, bs=64, device="cpu")
    assert [warning.filename for warning in caught] == [__file__]  # the line that asked
    assert [len(x) for x, _ in data.train_dl] == [12]


@pytest.mark.parametrize(
    ("value", "error"), [("64", TypeError), (64.0, TypeError), (True, TypeError), (0, ValueError), (-1, ValueError)]
)
@pytest.mark.parametrize("name", ["bs", "val_bs"])
def test_a_batch_size_that_is_not_a_count_raises_before_a_file_is_read(tree, name, value, error):
    (tree / "train" / "cat" / "0.png").write_text("no image")
    with pytest.raises(error, match=rf"^`{name}` must be"):
        bunch(tree, **{name: value})


@pytest.mark.parametrize("options", [{}, {"valid_pct": 0.2}, {"memory": 0}], ids=["plain", "share", "files"])
@pytest.mark.parametrize(("seed", "error"), [("1", TypeError), (0.5, TypeError), (-1, ValueError)])
def test_a_seed_that_is_not_an_integer_raises(tree, options, seed, error):
    with pytest.raises(error, match=r"^`seed` must be"):
        bunch(tree, seed=seed, **options)


@pytest.mark.parametrize("size", [0, -1, "28", 28.5, (28,), (28, 0), (1, 2, 3), ("a", "b"), True], ids=repr)
def test_an_invalid_size_raises(tree, size):
    with pytest.raises((TypeError, ValueError), match=r"^(each of )?`?size\b.*must be"):
        bunch(tree, size=size)


@pytest.mark.parametrize(("workers", "error"), [(-1, ValueError), ("2", TypeError), (1.5, TypeError)])
@pytest.mark.parametrize("memory", [0, 2**30])
def test_an_invalid_number_of_workers_raises(tree, workers, error, memory):
    with pytest.raises(error, match=r"^`num_workers` must be"):
        bunch(tree, num_workers=workers, memory=memory)


# --- shown


def drawn(figure) -> tuple[list[np.ndarray], list[str]]:
    axes = [ax for ax in figure.axes if ax.images]
    return [ax.images[0].get_array() for ax in axes], [ax.get_title() for ax in axes]


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (2, 4), (3, 9), (4, 12)])  # of 12 images
@pytest.mark.parametrize("memory", [0, 2**30])
def test_show_batch_plots_images_with_their_classes(tree, rows, n, memory):
    data = bunch(tree, bs=12, memory=memory, num_workers=0)
    x, y = data.one_batch()
    images, titles = drawn(data.show_batch(rows, return_fig=True))
    assert titles == [data.classes[i] for i in y[:n]]
    assert len(images) == n
    assert all(np.allclose(image, x[i].permute(1, 2, 0)) for i, image in enumerate(images))


def test_the_figure_comes_back_only_where_it_is_asked_for(tree):
    import matplotlib.pyplot as plt

    assert bunch(tree).show_batch() is None
    assert len(plt.get_fignums()) == 1
    assert all(not ax.axison for ax in plt.gcf().axes)


def test_the_part_to_draw_may_be_chosen(tree):
    data = bunch(tree)
    images, titles = drawn(data.show_batch(ds_type=DatasetType.Valid, return_fig=True))
    assert titles == ["cat"] * 3 + ["dog"] * 3
    assert np.allclose(images[0], data.one_batch(DatasetType.Valid)[0][0].permute(1, 2, 0))


def test_normalized_images_are_shown_denormalized(tree):
    plain, normalised = bunch(tree), bunch(tree).normalize(imagenet_stats)
    for first, second in zip(
        *(drawn(data.show_batch(return_fig=True))[0] for data in (plain, normalised)), strict=True
    ):
        assert np.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize(("rows", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("3", TypeError)])
def test_rows_that_are_no_count_raise(tree, rows, error):
    with pytest.raises(error, match=r"^`rows` must be"):
        bunch(tree).show_batch(rows)


# --- normalised


@pytest.mark.parametrize("memory", [0, 2**30])
def test_normalizing_is_undone_in_one_batch(tree, memory):
    plain, data = (bunch(tree, memory=memory, num_workers=0) for _ in range(2))
    assert data.normalize(imagenet_stats) is data
    x, y = plain.one_batch()
    back, y2 = data.one_batch()
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in imagenet_stats)
    assert y.equal(y2)
    assert back.allclose(x, atol=1e-6)
    assert data.one_batch(denorm=False)[0].allclose((x - mean) / std, atol=1e-6)
    assert all_of(data.valid_dl)[0].allclose((all_of(plain.valid_dl)[0] - mean) / std, atol=1e-6)


def test_without_statistics_those_of_the_first_batch_are_taken(tree):
    plain, data = bunch(tree, bs=12), bunch(tree, bs=12).normalize()
    x, _ = all_of(plain.train_dl)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    assert all_of(data.train_dl)[0].allclose((x - mean) / std, atol=1e-5)  # in the same order, too


def test_normalizing_twice_raises(tree):
    with pytest.raises(MinifastError, match=r"normalized already"):
        bunch(tree).normalize(imagenet_stats).normalize()


# --- predicted


@pytest.fixture
def learner(tree) -> Learner:
    torch.manual_seed(0)
    return Learner(bunch(tree), simple_cnn((3, 8, 2)), silent=True)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("memory", [0, 2**30])
def test_predicting_a_file_is_the_row_of_get_preds(tree, normalised, memory):
    torch.manual_seed(0)
    data = bunch(tree, memory=memory, num_workers=0)
    if normalised:
        data.normalize(imagenet_stats)
    learn = Learner(data, simple_cnn((3, 8, 2)), silent=True)
    predictions, targets = learn.get_preds()
    files = [tree / "valid" / name / f"{i}.png" for name in ("cat", "dog") for i in range(3)]
    assert predictions.std(0).min() > 1e-5  # rows that differ
    assert targets.tolist() == [0, 0, 0, 1, 1, 1]
    for i, file in enumerate(files):
        with Image.open(file) as image:
            image.load()
        raw = torch.from_numpy(np.array(image))[None]
        for item in (file, str(file), image, raw, raw / 255, data.valid_ds[i][0]):
            name, number, probabilities = learn.predict(item)
            assert probabilities.allclose(predictions[i], atol=1e-6)
            assert number == predictions[i].argmax()
            assert name == data.classes[number]


@pytest.mark.parametrize(("scale", "shift"), [(255, 0), (1, -0.5), (2, -1), (np.nan, 0)])
def test_an_image_of_floats_on_another_scale_is_an_error(tree, learner, scale, shift):
    raw = learner.data.valid_ds[0][0]
    raw = raw / 255 if raw.dtype is torch.uint8 else raw
    raw = (raw - raw.min()) / (raw.max() - raw.min())
    learner.predict(raw * 1.05 - 0.02)  # as an interpolation may leave it
    for item in (raw * scale + shift, (raw * scale + shift).numpy()):
        with pytest.raises(DataError, match=r"^The values of an image of floats must be from 0 to 1, got "):
            learner.predict(item)


def test_a_file_of_another_size_is_brought_to_the_datas(tree):
    data = bunch(tree, size=4)
    write_images(tree / "new", 1, (30, 20))
    assert data.encode(tree / "new" / "0.png").shape == (1, 3, 4, 4)
    with Image.open(tree / "new" / "0.png") as image:
        assert data.encode(image).equal(data.encode(tree / "new" / "0.png"))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png")]
)
def test_a_pil_image_is_taken_as_its_file_would_be(tree, learner, mode, suffix):
    file = tree / f"x.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).convert(mode).save(file)
    with Image.open(file) as image:
        assert image.mode == mode
        assert learner.data.encode(image).equal(learner.data.encode(file))


def test_predicting_leaves_the_image_the_tensor_and_the_model_as_they_were(tree, learner):
    with Image.open(tree / "valid" / "cat" / "0.png") as image:
        before = np.array(image)
        tensor = torch.from_numpy(np.array(image))[None] / 255
        kept = tensor.clone()
        learner.model.train()
        learner.predict(image)
        learner.predict(tensor)
        assert np.array_equal(np.array(image), before)
    assert tensor.equal(kept)
    assert learner.model.training


def test_predicting_what_is_no_image_names_it(tree, learner):
    (tree / "notes.png").write_text("no image")
    with pytest.raises(DataError, match=r"notes\.png is not a readable image"):
        learner.predict(tree / "notes.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        learner.predict(tree / "gone.png")
    for item in (tree, str(tree)):
        with pytest.raises(DataError, match=r"is a folder, and an image is needed\. Pass the path of one file\."):
            learner.predict(item)


# --- trained on


def test_a_learner_learns_dark_from_bright(tmp_path):
    torch.manual_seed(1)
    learn = Learner(bunch(write_tree(tmp_path, 20, 10), bs=8), simple_cnn((3, 8, 2)), metrics=[accuracy], silent=True)
    learn.fit_one_cycle(8, 5e-2)
    assert learn.recorder.metrics[-1] == [1.0]


def test_a_model_with_other_outputs_than_classes_raises(tree):
    with pytest.raises(DataError, match=r"3 outputs, but the data have 2 classes \(cat, dog\)"):
        Learner(bunch(tree), simple_cnn((3, 3)), silent=True).fit(1)


# --- the real MNIST_SAMPLE


@pytest.fixture(scope="module")
def mnist(mnist_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageDataBunch:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIFAST_HOME", str(tmp_path_factory.mktemp("home")))
        return ImageDataBunch.from_folder(mnist_sample, seed=0, device="cpu")


@pytest.mark.slow
def test_mnist_sample_is_what_fastai_makes_of_it(mnist):
    assert [len(ds) for ds in (mnist.train_ds, mnist.valid_ds)] == [12396, 2038]
    assert (mnist.classes, mnist.c, len(mnist.train_dl)) == (["3", "7"], 2, 193)
    x, y = mnist.one_batch()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((64, 3, 28, 28), torch.float32, (64,), torch.int64)
    assert (x.min(), x.max()) == (0, 1)
    assert isinstance(mnist.loss_func, torch.nn.CrossEntropyLoss)


@pytest.mark.slow
def test_an_epoch_of_mnist_sample_is_193_full_batches_of_different_images(mnist):
    sizes = [len(x) for x, _ in mnist.train_dl]
    assert sizes == [64] * 193
    y = torch.cat([y for _, y in mnist.train_dl])
    assert y.float().mean().item() == pytest.approx(6265 / 12396, abs=0.01)
    targets = torch.cat([y for _, y in mnist.valid_dl])
    assert targets.tolist() == [0] * 1010 + [1] * 1028


@pytest.mark.slow
def test_files_of_mnist_sample_are_predicted_as_in_get_preds(mnist, mnist_sample):
    torch.manual_seed(0)
    learn = Learner(mnist, simple_cnn((3, 16, 16, 2)), silent=True)
    predictions, _ = learn.get_preds()
    files = sorted((mnist_sample / "valid" / "3").iterdir()) + sorted((mnist_sample / "valid" / "7").iterdir())
    for i in (0, 1009, 1010, 2037):
        assert learn.predict(files[i])[2].allclose(predictions[i], atol=1e-6)


@pytest.mark.slow
def test_one_epoch_on_mnist_sample_tells_3_from_7(mnist):
    torch.manual_seed(0)
    learn = Learner(mnist, simple_cnn((3, 16, 16, 2)), metrics=[accuracy], silent=True)
    learn.fit_one_cycle(1, 5e-2)
    assert learn.recorder.metrics[-1][0] > 0.95
