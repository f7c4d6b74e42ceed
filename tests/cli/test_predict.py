"""The command ``predict``."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from conftest import leave_out_plots

from minifast import DatasetType, ImageDataBunch, cli, load_learner
from minifast.cli.predict import Prediction, label_delim_of, write_csv
from minifast.data import synthetic
from minifast.data.images.image_bunch import BUDGET
from minifast.data.labels import as_labels
from minifast.data.tables import read_csv


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with generated images in sample, and the results of train in out."""
    root = tmp_path_factory.mktemp("trained")
    synthetic.generate_sample(root / "sample", n_train=320, n_valid=20)
    command = ["train", str(root / "sample"), "--bs", "16", "--epochs", "1", "--lr", "2e-2", "--seed", "7"]
    with pytest.MonkeyPatch.context() as patch:
        leave_out_plots(patch)
        assert cli.main([*command, "--out", str(root / "out")]) == 0
    return root


def test_predict_prints_a_class_and_a_probability(trained, capsys):
    image = next(trained.glob("sample/valid/3/*.png"))
    assert cli.main(["predict", str(trained / "out" / "export.pkl"), str(image)]) == 0
    name, probability = capsys.readouterr().out.split()
    category, _, probabilities = load_learner(trained / "out").predict(image)
    assert name == category
    assert probability == f"{float(probabilities.max()):.4f}"


def test_predict_prints_a_table_or_json_for_several_images(trained, capsys):
    images = sorted(map(str, trained.glob("sample/valid/*/*.png")))[:5]
    command = ["predict", str(trained / "out" / "export.pkl"), *images]
    assert cli.main(command) == 0
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["image", "class", "probability"]
    assert [row[0] for row in rows] == images
    assert cli.main([*command, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [[record["image"], record["class"], f"{record['probability']:.4f}"] for record in records] == rows
    assert all(max(record["probabilities"].values()) == record["probability"] for record in records)
    assert set(records[0]["probabilities"]) == {"3", "7"}


@pytest.mark.parametrize("options", [[], ["--json"], ["--csv"]])
def test_predictions_that_cannot_be_printed_are_an_error_unless_they_are_in_a_file(
    options, trained, tmp_path, monkeypatch
):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    file = [str(tmp_path / "out.csv")] if options == ["--csv"] else []
    image = str(next(trained.glob("sample/valid/3/*.png")))
    assert cli.main(["predict", str(trained / "out"), image, *options, *file]) == (0 if file else 1)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["out/export.pkl", "no.png"], 2, "no.png; check the path."),
        (["sample", "sample/valid/3/0.png"], 2, "sample has no export.pkl; give the results folder of minifast train."),
        (["out/export.pkl", "sample/*.png"], 2, "sample/*.png; check the pattern."),
        (["out/export.pkl", "sample/no*/"], 2, "sample/no*; check the pattern."),
        (["out/export.pkl", "empty"], 2, "empty has no images; give another one."),
        (["out/export.pkl", "empt*"], 2, "empt* have no images; check the pattern."),
        (
            ["out/export.pkl", "sample/valid/3/0.png", "--csv", "out"],
            2,
            "out cannot be written",
        ),
        (["out/exprot.pkl", "sample/valid/3/0.png"], 2, "out/exprot.pkl; check the path."),
        (["out/export.pkl", "out/history.csv"], 2, "history.csv cannot be decoded; give other images"),
        (["out/model.pth", "sample/valid/3/0.png"], 1, "model.pth is not an export; learn.save wrote it"),
        (["out/options.json", "sample/valid/3/0.png"], 1, "options.json"),
        (["out/export.pkl", "sample/valid/3/0.png", "--device", "cudaa"], 2, "--device cudaa is not available here"),
    ],
)
def test_predict_prints_one_line_for_an_error(arguments, code, words, trained, capsys):
    options = {"--device", "cudaa", "--csv"}
    (trained / "empty").mkdir(exist_ok=True)
    given = [argument if argument in options else str(trained / argument) for argument in arguments]
    assert cli.main(["predict", *given]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_many_images_written_to_a_file_show_their_progress(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("minifast.training.progress.SECONDS", 0)
    images = sorted(trained.glob("sample/*/*/*.png"))
    for i in range(200):
        (tmp_path / f"{i:03}.png").symlink_to(images[i % len(images)])
    predict = ["predict", str(trained / "out"), str(tmp_path)]
    assert cli.main([*predict, "--csv", str(tmp_path / "out.csv")]) == 0
    assert "batch 2 of 4" in capsys.readouterr().out
    for arguments in (predict, [*predict, "--json"]):  # stdout holds the predictions only
        assert cli.main(arguments) == 0
        assert "batch" not in capsys.readouterr().out


def test_images_that_cannot_be_decoded_are_left_out(trained, tmp_path, capsys):
    good = [str(trained / "sample/valid/3" / f"{i}.png") for i in range(3)]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    assert cli.main(["predict", str(trained / "out"), good[0], str(bad), *good[1:]]) == 0
    captured = capsys.readouterr()
    assert [row[0] for row in rows_of(captured.out)[1:]] == good
    assert captured.err == f"Left out 1 of 4 images, which cannot be decoded: {bad}.\n"
    assert cli.main(["predict", str(trained / "out"), good[0], str(bad)]) == 0
    assert [row[0] for row in rows_of(capsys.readouterr().out)[1:]] == good[:1]


def rows_of(text: str) -> list[list[str]]:
    """The cells of a printed table."""
    return [line.split() for line in text.splitlines()]


def test_a_results_folder_and_folders_and_patterns_of_images(trained, capsys):
    files = sorted(map(str, trained.glob("sample/valid/3/*.png")))
    commands = [files, [str(trained / "sample/valid/3")], [str(trained / "sample/val*/3/*.png")]]
    printed = []
    for images in commands:
        assert cli.main(["predict", str(trained / "out"), *images]) == 0
        printed.append(rows_of(capsys.readouterr().out))
    assert [row[0] for row in printed[0][1:]] == files
    assert printed[0] == printed[1] == printed[2]


def test_an_image_that_several_arguments_name_is_predicted_once(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained / "sample" / "valid")
    files = sorted(map(str, Path("3").glob("*.png")))
    commands = [[files[1], "3", "3/*.png", f"./{files[0]}", str(Path("3").absolute())], ["7/../3/*.png", "3"]]
    for arguments, first in zip(
        commands, ([files[1], files[0], *files[2:]], [f"7/../{f}" for f in files]), strict=True
    ):
        assert cli.main(["predict", str(trained / "out"), *arguments]) == 0
        assert [row[0] for row in rows_of(capsys.readouterr().out)[1:]] == first


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (["sample/valid/3/0.png", "out"], "out sample/valid/3/0.png"),
        (["sample/valid/3/0.png", "out/export.pkl"], "out/export.pkl sample/valid/3/0.png"),
        (["sample/valid", "out"], "out sample/valid"),
        (["sample/valid/3/0.png", "sample/valid/3/1.png"], "results sample/valid/3/0.png"),
    ],
)
def test_a_model_after_the_images_is_said_to_come_first(given, command, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    image = next(trained.glob("sample/valid/3/*.png"))
    for name in ("0.png", "1.png"):
        target = trained / "sample/valid/3" / name
        if not target.exists():
            target.write_bytes(image.read_bytes())
    assert cli.main(["predict", *given]) == 2
    text = f"{given[0]} is no model; the model comes first, then the images: minifast predict {command}\n"
    assert capsys.readouterr().err == f"minifast: {text}"


def test_a_folder_with_one_image_prints_its_name(trained, tmp_path, capsys):
    image = next(trained.glob("sample/valid/3/*.png"))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(image.read_bytes())
    assert cli.main(["predict", str(trained / "out"), str(tmp_path / "one")]) == 0
    assert rows_of(capsys.readouterr().out)[1][0] == str(tmp_path / "one" / "a.png")


def test_several_missing_folders_of_the_csv_file_are_an_error(trained, tmp_path, capsys):
    out = tmp_path / "one" / "two" / "predictions.csv"
    assert cli.main(["predict", str(trained / "out"), str(trained / "sample/valid"), "--csv", str(out)]) == 2
    assert f"--csv {out}: there is no folder {tmp_path / 'one'}; check the path" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


def test_predictions_are_written_to_a_csv_file(trained, tmp_path, capsys):
    out = tmp_path / "new" / "out.csv"
    command = ["predict", str(trained / "out"), str(trained / "sample/valid"), "--csv", str(out)]
    assert cli.main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    records = json.loads(captured.out)
    header, *rows = csv.reader(out.read_text().splitlines())
    assert header == ["image", "class", "probability", "probability of 3", "probability of 7"]
    assert [row[:2] for row in rows] == [[record["image"], record["class"]] for record in records]
    assert [list(map(float, row[3:])) for row in rows] == [[*record["probabilities"].values()] for record in records]
    n = sum(row[1] == "7" for row in rows)
    assert f"Wrote the predictions of 20 images to {out}: " in captured.err
    assert f"7 {n} times" in captured.err
    assert cli.main(command) == 0
    assert capsys.readouterr().out == ""


def test_a_file_name_that_is_not_utf8_keeps_its_bytes(trained, tmp_path):
    image = tmp_path / "image"
    image.mkdir()
    name = b"caf\xe9.png"
    try:
        Path(image / name.decode(errors="surrogateescape")).write_bytes(
            next(trained.glob("sample/valid/3/*.png")).read_bytes()
        )
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    assert cli.main(["predict", str(trained / "out"), str(image), "--csv", str(tmp_path / "out.csv")]) == 0
    assert name in (tmp_path / "out.csv").read_bytes()


def test_many_images_show_a_bar_on_a_terminal_only(trained, monkeypatch, capsys):
    many = [str(trained / "sample" / "train")]
    assert cli.main(["predict", str(trained / "out"), *many]) == 0
    piped = capsys.readouterr().out
    monkeypatch.setattr("minifast.training.progress.is_terminal", lambda stream: True)
    monkeypatch.setattr("minifast.cli.predict.is_terminal", lambda stream: True)
    assert cli.main(["predict", str(trained / "out"), *many]) == 0
    shown = capsys.readouterr().out
    assert "Predictions 1/1 : " in shown
    assert "Predictions" not in piped
    assert "\r" not in piped
    assert shown.splitlines()[-1] == piped.splitlines()[-1]


@pytest.mark.parametrize("memory", [0, BUDGET])
@pytest.mark.parametrize("valid_pct", [None, 0.25])
def test_predictions_of_a_test_folder_come_with_their_files(memory, valid_pct, trained):
    folder = trained / "sample"
    data = ImageDataBunch.from_folder(
        folder, test="valid", valid_pct=valid_pct, bs=16, seed=0, memory=memory, num_workers=0, device="cpu"
    )
    learn = load_learner(trained / "out", device="cpu")
    learn.data = data
    predictions, _ = learn.get_preds(DatasetType.Test)
    assert data.test_ds.items == [*sorted(folder.glob("valid/3/*.png")), *sorted(folder.glob("valid/7/*.png"))]
    for file, row in zip(data.test_ds.items, predictions, strict=True):
        assert (learn.predict(file)[2] - row).abs().max() < 1e-5
    for part in (data.train_ds, data.valid_ds):
        assert [file.parent.name for file in part.items] == [data.classes[int(part[i][1])] for i in range(len(part))]


@pytest.mark.parametrize(
    ("content", "delim"),
    [(None, ", "), ("{", ", "), ("[]", ", "), ('{"label_delim": null}', ", "), ('{"label_delim": " "}', " ")],
)
def test_classes_in_a_cell_are_separated_as_in_the_training(content, delim, tmp_path) -> None:
    if content is not None:
        (tmp_path / "options.json").write_text(content)
    assert label_delim_of(tmp_path / "export.pkl") == delim
    found = [
        Prediction("a.png", "classes", ["cat", "dog"], [0.9, 0.8], {"cat": 0.9, "dog": 0.8}),
        Prediction("b.png", "classes", [], [], {"cat": 0.1, "dog": 0.2}),
    ]
    write_csv(tmp_path / "out.csv", found, delim)
    labels = read_csv(tmp_path / "out.csv", None, "infer")["classes"]
    assert as_labels(labels, None, delim).targets.tolist() == [[1.0, 1.0], [0.0, 0.0]]
