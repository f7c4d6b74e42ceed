"""The generated sample data: its layout, that a seed gives equal images, and that a model has to learn it."""

from __future__ import annotations

import csv
import hashlib
import math
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from minifast.data import synthetic
from minifast.data.synthetic import generate_sample
from minifast.errors import DataError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return generate_sample(tmp_path_factory.mktemp("generated") / "sample", n_train=401, n_valid=100)


def digest(folder: Path) -> dict[str, str]:
    """The name and the content of every file."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def load(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) from 0 to 1 and their labels, as labels.csv has them."""
    with (folder / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["name"].startswith(split)]
    images = np.stack([np.asarray(Image.open(folder / row["name"])) for row in rows])
    return images.astype(np.float32) / 255, np.array([int(row["label"]) for row in rows])


def test_the_layout_is_that_of_mnist_sample(sample):
    folders = {p.relative_to(sample).as_posix(): len(list(p.iterdir())) for p in sample.glob("*/*") if p.is_dir()}
    assert folders == {"train/3": 201, "train/7": 200, "valid/3": 50, "valid/7": 50}
    assert {p.name for p in sample.iterdir()} == {"train", "valid", "labels.csv"}


def test_labels_csv_has_a_row_a_file(sample):
    with (sample / "labels.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "label"]
    assert rows[0] == ["train/3/0.png", "0"]
    assert sorted(name for name, _ in rows) == sorted(p.relative_to(sample).as_posix() for p in sample.rglob("*.png"))
    assert all({"3": "0", "7": "1"}[name.split("/")[1]] == label for name, label in rows)


def test_images_are_28_by_28_gray_white_on_black_and_all_different(sample):
    for path in (sample / "valid").rglob("*.png"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))
    images, _ = load(sample, "train")
    ink = images.mean((1, 2))
    assert 0.05 < ink.mean() < 0.25
    assert ink.min() > 0.01
    assert images.max((1, 2)).min() > 0.5
    assert np.median(images) == 0
    assert len(np.unique(images, axis=0)) == len(images)


def test_every_font_has_both_digits_whole():
    glyphs = synthetic._glyphs()
    assert len(glyphs) >= 20
    assert glyphs.shape[1:] == (2, synthetic.GLYPH, synthetic.GLYPH)
    assert (glyphs.amax((2, 3)) > 0.5).all()
    border = torch.ones(synthetic.GLYPH, synthetic.GLYPH, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    assert glyphs[:, :, border].max() < 0.05
    # of its ink on the right, a 3 has more below than the 7 of the same font
    half = synthetic.GLYPH // 2
    upper, lower = glyphs[:, :, :half, half:].sum((2, 3)), glyphs[:, :, half:, half:].sum((2, 3))
    below = lower / upper
    assert (below[:, 0] > below[:, 1] + 0.1).all()


def test_a_seed_is_one_sample(sample, tmp_path):
    again = generate_sample(tmp_path / "again", n_train=401, n_valid=100)
    assert digest(again) == digest(sample)
    other = generate_sample(tmp_path / "other", n_train=401, n_valid=100, seed=1)
    same = set(digest(other).values()) & set(digest(sample).values())
    assert same == {digest(sample)["labels.csv"]}


def test_global_generators_are_not_touched(tmp_path):
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    want = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    generate_sample(tmp_path / "s", n_train=10, n_valid=10)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == want


def test_what_a_user_set_as_default_does_not_matter(sample, tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            again = generate_sample(tmp_path / "again", n_train=401, n_valid=100)
    finally:
        torch.set_default_dtype(torch.float32)
    assert digest(again) == digest(sample)


def test_many_images_are_generated_in_parts_and_none_repeats():
    labels, images = zip(*synthetic._images(synthetic._glyphs(), 1003, np.random.default_rng(0)), strict=True)
    assert labels == tuple(i % 2 for i in range(1003))
    assert len(torch.stack(images).unique(dim=0)) == 1003


def test_the_default_place_is_in_home_and_is_used_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIFAST_HOME", str(tmp_path))
    path = generate_sample(n_train=2, n_valid=2)
    assert path == tmp_path / "data" / "generated_sample"
    assert len(list(path.rglob("*.png"))) == 4
    before = digest(path)
    monkeypatch.setattr(synthetic, "_glyphs", None)  # nothing is generated the second time
    assert generate_sample(n_train=100, seed=3) == path
    assert digest(path) == before


def test_an_empty_folder_is_filled(tmp_path):
    assert generate_sample(str(tmp_path), n_train=2, n_valid=3) == tmp_path
    assert len(list(tmp_path.rglob("*.png"))) == 5


@pytest.mark.parametrize(("name", "value", "error"), [
    ("n_train", 1, ValueError), ("n_valid", 0, ValueError), ("n_train", 10.0, TypeError), ("seed", -1, ValueError),
])  # fmt: skip
def test_invalid_numbers_raise_first(name, value, error, tmp_path):
    with pytest.raises(error, match=name):
        generate_sample(tmp_path / "s", **{name: value})
    assert not (tmp_path / "s").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(DataError, match="exists and is not a generated sample"):
        generate_sample(tmp_path)
    with pytest.raises(DataError, match="exists and is not a generated sample"):
        generate_sample(tmp_path / "thesis.tex")
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex"}


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        generate_sample(tmp_path / "file" / "s", n_train=2, n_valid=2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_incomplete_sample_is_removed(error, tmp_path, monkeypatch):
    write = synthetic._write

    def interrupted(folder, split, images):
        if split == "valid":
            raise error
        return write(folder, split, images)

    monkeypatch.setattr(synthetic, "_write", interrupted)
    with pytest.raises((KeyboardInterrupt, DataError)):
        generate_sample(tmp_path / "s", n_train=4, n_valid=4)
    assert list(tmp_path.iterdir()) == []


def test_two_at_the_same_moment_both_end_well(tmp_path, monkeypatch):
    together, move, ends = threading.Barrier(2), synthetic.move_into_place, []

    def move_together(*args):
        together.wait(10)
        move(*args)

    monkeypatch.setattr(synthetic, "move_into_place", move_together)
    threads = [
        threading.Thread(target=lambda: ends.append(generate_sample(tmp_path / "s", n_train=4, n_valid=4)))
        for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [tmp_path / "s"] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert len(list((tmp_path / "s").rglob("*.png"))) == 8


def test_matplotlib_without_its_fonts_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match="Reinstall matplotlib"):
        generate_sample(tmp_path / "s")


def linear_accuracy(train: tuple[np.ndarray, np.ndarray], valid: tuple[np.ndarray, np.ndarray]) -> float:
    """The share of ``valid`` that the best linear model of ``train`` (ridge regression) gets right."""
    (x, y), (vx, vy) = ((np.c_[a.reshape(len(a), -1), np.ones(len(a))], b) for a, b in (train, valid))
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ (2 * y - 1))
    return float(((vx @ weights > 0) == vy).mean())


def test_a_linear_model_learns_something_but_not_all(sample):
    train, valid = load(sample, "train"), load(sample, "valid")
    right = linear_accuracy(train, valid)
    assert 0.75 < right < 0.98
    chance = linear_accuracy((train[0], np.random.default_rng(0).permutation(train[1])), valid)
    assert 0.3 < chance < 0.7


@pytest.mark.slow
def test_two_epochs_of_one_cycle_teach_a_cnn_what_a_linear_model_cannot_learn(tmp_path):
    path = generate_sample(tmp_path / "s")
    train, valid = load(path, "train"), load(path, "valid")
    (x, y), (vx, vy) = (
        (torch.from_numpy(a).unsqueeze(1).expand(-1, 3, -1, -1), torch.from_numpy(b)) for a, b in (train, valid)
    )
    torch.manual_seed(0)
    model = nn.Sequential()
    for into, out in ((3, 16), (16, 16), (16, 2)):
        layer = nn.Conv2d(into, out, 3, 2, 1)
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
        model.extend([layer, nn.ReLU()])
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    opt = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=1e-2)
    batches = [batch for _ in range(2) for batch in torch.randperm(len(x))[: len(x) // 64 * 64].split(64)]
    for i, batch in enumerate(batches):
        p = i / len(batches)
        up, down = 1 / 25 + (1 - 1 / 25) * p / 0.3, (1 + math.cos(math.pi * (p - 0.3) / 0.7)) / 2
        opt.param_groups[0]["lr"] = 5e-2 * (up if p < 0.3 else down)
        opt.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        opt.step()
    with torch.no_grad():
        right = (model(vx).argmax(1) == vy).float().mean().item()
    assert right > 0.97
    assert linear_accuracy(train, valid) < right - 0.01


def test_the_error_of_a_download_names_the_generated_sample(tmp_path, monkeypatch):
    import requests

    from minifast import DownloadError, URLs, untar_data
    from minifast.data import generate_sample as public_name

    def refuse(*arguments, **options):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr("requests.get", refuse)
    with pytest.raises(
        DownloadError, match=r"Without a network, `from minifast\.data import generate_sample`"
    ) as caught:
        untar_data(URLs.MNIST_SAMPLE, dest=tmp_path / "a", force_download=True, silent=True)
    assert "generate_sample" not in caught.value.cli_message
    with pytest.raises(DownloadError) as caught:
        untar_data("https://example.com/other.tgz", dest=tmp_path / "a", force_download=True, silent=True)
    assert "generate_sample" not in str(caught.value)
    assert public_name is generate_sample
