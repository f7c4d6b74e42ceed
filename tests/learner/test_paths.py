"""A learner writes its files into the working directory, never among the images that it trains on."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from minifast import CSVLogger, DataBunch, ImageDataBunch, Learner, SaveModelCallback, load_learner, simple_cnn


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    for i in range(12):
        folder = tmp_path / "images" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(folder / f"{i}.png")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "images"


def tree(folder: Path) -> list[str]:
    return sorted(os.path.relpath(file, folder) for file in folder.rglob("*") if file.is_file())


def write_everything(learn: Learner) -> None:
    learn.fit(1, callbacks=[CSVLogger(), SaveModelCallback()], checkpoint="run")
    learn.save("mine")
    learn.export()


def test_every_file_of_a_learner_is_in_the_working_directory(images):
    before = tree(images)
    data = ImageDataBunch.from_folder(images, valid_pct=0.3, seed=0, bs=4, device="cpu")
    write_everything(Learner(data, simple_cnn((3, 4, 2)), silent=True))
    assert tree(images) == before
    assert {"export.pkl", "history.csv", "models/mine.pth"} <= set(tree(Path()))
    assert load_learner(".").data.classes == ["a", "b"]
    assert ImageDataBunch.from_folder(images, valid_pct=0.3, seed=0, bs=4, device="cpu").classes == ["a", "b"]


def test_the_place_of_fastai_v1_is_a_path(images):
    data = ImageDataBunch.from_folder(images, valid_pct=0.3, seed=0, bs=4, device="cpu")
    write_everything(Learner(data, simple_cnn((3, 4, 2)), path=data.path, silent=True))
    assert "export.pkl" in tree(images)
    assert tree(Path()) == []


def test_the_path_of_other_data_is_the_learners():
    batches = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]
    data = DataBunch(batches, device="cpu", classes=["a", "b"], path="results")
    assert Learner(data, simple_cnn((3, 4, 2))).path == Path("results")
