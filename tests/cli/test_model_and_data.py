"""What ``minifast train`` trains: pretrained networks, and labels of any kind in a CSV file."""

from __future__ import annotations

import argparse
import csv
import inspect
import json
import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from conftest import slow
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minifast import Callback, DataBunch, ImageDataBunch, Learner, cli, load_learner, simple_cnn, vision_learner
from minifast.cli import learning_rate
from minifast.cli.common import make_model
from minifast.cli.learner import FINE_TUNE_LR
from minifast.cli.options import CLI_NAMES, EXAMPLES, _meant_option, own_words, parser
from minifast.cli.predict import as_prediction
from minifast.cli.train import ADVICE
from minifast.data import synthetic
from minifast.training.batchnorm import statistics_cure
from minifast.utils.public import OTHER_NAMES
from minifast.vision import architecture

ARCH = "tiny_net"
TRAIN = ["--epochs", "1", "--bs", "8", "--seed", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with generated 3s and 7s in ``images``, tables of their labels, and a file of weights."""
    root = tmp_path_factory.mktemp("labels")
    synthetic.generate_sample(root / "images", n_train=48, n_valid=20)
    files = sorted((root / "images" / "train").glob("*/*.png"))
    images = [(str(file.relative_to(root / "images")), file.parent.name == "3") for file in files]
    tables = {
        "class": (["file", "label"], [[name, "drei" if three else "sieben ü"] for name, three in images]),
        "classes": (["file", "labels"], [[name, "odd|3" if three else "odd|7"] for name, three in images]),
        "number": (["value", "file"], [[-1.5 if three else 2.5, name] for name, three in images]),
        "empty": (["file", "label"], []),
        "missing": (["file", "label"], [[f"{name}x", "a"] for name, _ in images]),
        "stems": (["file", "label"], [[name.removesuffix(".png"), int(three)] for name, three in images]),
    }
    for name, (header, rows) in tables.items():
        with (root / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([header, *rows])
    (root / "no_bytes.csv").touch()
    torch.manual_seed(0)
    torch.save(tiny_net().state_dict(), root / "weights.pth")
    return root


def tiny_net(num_classes: int = 10, weights: None = None) -> nn.Module:
    """A network as torchvision's functions make them, small enough for a test."""
    layers = [nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


@pytest.fixture(autouse=True)
def tiny_net_has_a_name(monkeypatch):
    by_name = architecture._by_name
    monkeypatch.setattr(architecture, "_by_name", lambda name: (tiny_net, name) if name == ARCH else by_name(name))


# --- labels in a CSV file

COLUMNS = {
    "class": [],
    "classes": ["--label-delim", "|"],
    "number": ["--fn-col", "file", "--label-col", "0"],
    "stems": ["--suffix", ".png"],
}


@pytest.mark.parametrize(
    ("kind", "metric", "words"),
    [
        ("class", "accuracy", "of 2 classes. The labels are names."),
        ("classes", "accuracy_thresh", "with any of 3 classes (multi-label). The labels are texts split at '|'."),
        ("number", "root_mean_squared_error", "with 1 regression target. The labels are floats."),
        ("stems", "accuracy", "of 2 classes. The labels are integers. Integers are classes; with a decimal point"),
    ],
)
@pytest.mark.slow
def test_labels_in_a_csv_file_are_trained_and_predicted(kind, metric, words, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    command = ["train", "images", "--csv", f"{kind}.csv", *COLUMNS[kind], *TRAIN, "--lr", "1e-2"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert f"39 training and 9 validation images {words}" in (printed := capsys.readouterr().out)
    assert "Missing" not in printed
    header, *_ = csv.reader((tmp_path / "out" / "history.csv").read_text().splitlines())
    assert header[3] == metric
    images = sorted(map(str, (folder / "images" / "valid").glob("*/*.png")))
    predict = ["predict", str(tmp_path / "out"), *images]
    assert cli.main([*predict, "--csv", str(tmp_path / "out.csv")]) == 0
    table = list(csv.DictReader((tmp_path / "out.csv").read_text("utf-8").splitlines()))
    assert cli.main([*predict, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    learn = load_learner(tmp_path / "out")
    for row, record, image in zip(table, records, images, strict=True):
        chosen, _, output = learn.predict(image)
        assert row["image"] == record["image"] == image
        if kind == "number":
            assert float(row["prediction"]) == record["prediction"] == pytest.approx(float(output))
            continue
        probabilities = {name: float(row[f"probability of {name}"]) for name in map(str, learn.data.classes)}
        assert list(probabilities.values()) == pytest.approx(output.tolist(), abs=1e-5)
        assert record["probabilities"] == pytest.approx(probabilities)
        if kind == "classes":
            assert row["classes"] == "|".join(chosen)  # as in the table of the training
            assert record["classes"] == chosen
        else:
            assert row["class"] == record["class"] == str(chosen)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--csv", "nothing.csv"], "--csv: there is no file nothing.csv, neither here nor in images."),
        (["--csv", "empty.csv"], "empty.csv has no row below its header. Each row must hold a file name and a label."),
        (["--csv", "no_bytes.csv"], "no_bytes.csv has no row below its header."),
        (
            ["--csv", "missing.csv"],
            "and 47 more of 48 are missing. Check DATA, the folder of the images, and the suffix",
        ),
        (
            ["--csv", "class.csv", "--label-col", "lable"],
            "--label-col must be the name or the index of one of the colu",
        ),
        (
            ["--csv", "class.csv", "--fn-col", "2"],
            "--fn-col must be the name or the index of one of the columns file, ",
        ),
        (["--csv", "number.csv"], "must hold a file name, got -1.5. Give --fn-col."),
        (["--csv", "weights.pth"], "weights.pth is not a CSV file in UTF-8"),
        (["--label-delim", " "], "--label-delim needs a file of labels; give one with --csv FILE."),
        (
            ["--pretrained", "--arch", "simple_cnn"],
            "simple_cnn has no pretrained weights; give another network, such as",
        ),
        (["--arch", "simple_cn"], "--arch: there is no simple_cn. Did you mean simple_cnn?"),
        (["--weights", "nothing.pth"], "nothing.pth; check the path."),
        (["--weights", "class.csv"], "Give a file that minifast wrote, or a state dict that torch.save wrote."),
        (["--weights", "weights.pth", "--arch", "resnet18"], "which the backbone of resnet18 needs; give a file of"),
        *slow((["--weights", "weights.pth", "--arch", "vit_b_32"], "does not take images of shape 3 x 28 x 28")),
        (["--weights", "weights.pth", "--arch", ARCH, "--bs", "1"], "a larger --bs, or another --arch."),
    ],
)
def test_arguments_that_cannot_work_end_with_one_line_before_the_training(
    arguments, words, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    assert cli.main(["train", "images", "--bs", "16", *arguments, "--out", str(tmp_path / "out")]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert "`" not in error
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_names_the_option(folder, capsys):
    assert cli.main(["train", str(folder / "class.csv")]) == 2
    assert "is a file; give the folder of the images. A file of labels comes after --csv." in capsys.readouterr().err


def test_the_outputs_of_simple_cnn_can_be_negative():
    torch.manual_seed(0)
    outputs = torch.stack([make_model("simple_cnn", 3)(torch.rand(8, 3, 28, 28)) for _ in range(8)])
    assert (outputs < 0).any()
    assert outputs.shape == (8, 8, 3)
    assert (simple_cnn((3, 16, 16, 3))(torch.rand(8, 3, 28, 28)) >= 0).all()


@given(st.sampled_from(["valid_pct", "label_col", "on_bad_image", "bs"]), st.text("ab `.", max_size=9))
def test_arguments_in_a_message_become_options_of_the_command(name, around):
    options = parser().parse_args(["train"])
    assert own_words(f"{around}`{name}`", options).endswith(f"--{name.replace('_', '-')}") or "`" in around
    assert own_words("`n_epochs` and x", options) == "`n_epochs` and x"


@pytest.mark.parametrize("text", ["such as bs=64", "such as valid_pct=0.2."])
def test_examples_in_a_message_become_options_of_the_command(text):
    options = parser().parse_args(["train"])
    assert own_words(text, options) == text.replace("bs=", "--bs ").replace("valid_pct=", "--valid-pct ")
    assert own_words("fewer than bs=64", options) == "fewer than bs=64"
    assert own_words("such as n=3", options) == "such as n=3"


@given(st.sampled_from(sorted({*OTHER_NAMES, *CLI_NAMES})), st.sampled_from(sorted(EXAMPLES)))
def test_an_option_of_other_commands_leads_to_one_that_the_command_has(name, command):
    subparsers = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    known = subparsers.choices[command]
    options = [option for action in known._actions for option in action.option_strings]
    option = f"--{name.replace('_', '-')}"
    hint = _meant_option(f"{option}=1", known)
    if hint.startswith(" Did you mean "):
        assert hint.removeprefix(" Did you mean ").removesuffix("?") in options
    elif hint:
        assert hint.endswith(f" without {option}.")
    own = CLI_NAMES.get(name)
    if own and f"--{own}" in options:
        assert hint == f" Did you mean --{own}?"


def test_the_command_has_its_own_words_for_all_advice_of_a_run():
    data = DataBunch([(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))], device="cpu")
    learn = Learner(data, nn.Linear(2, 2), loss_func=nn.CrossEntropyLoss())
    in_python = statistics_cure(learn)
    learn._advice = ADVICE
    assert "--epochs" in statistics_cure(learn) != in_python


def test_help_of_a_command_names_its_own_options_only():
    subparsers = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in subparsers.choices.items():
        described = " ".join(action.help or "" for action in command._actions)
        others = [] if name == "cache" else set(re.findall(r"--[a-z][\w-]*", described))
        known = {option for action in command._actions for option in action.option_strings}
        assert set(others) - {"--list"} <= known, name


@pytest.mark.parametrize("classes", [["cat", "dog"], None])
def test_a_single_output_is_read_as_by_predict(classes):
    learn = Learner(
        DataBunch([(torch.rand(4, 2), torch.tensor([0.0, 1, 0, 1]))], device="cpu", classes=classes),
        nn.Linear(2, 1),
        loss_func=nn.BCEWithLogitsLoss(),
    )
    for value in (0.2, 0.9):
        prediction = as_prediction(learn, "x.png", torch.tensor([value]))
        if classes is None:
            assert prediction.values == pytest.approx([value])
        else:
            assert prediction.names == ["dog" if value > 0.5 else "cat"]
            assert prediction.values == pytest.approx([max(value, 1 - value)])


# --- pretrained networks


def parts_of(out: Path) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
    state = torch.load(out / "model.pth", weights_only=True)["model"]
    return state, list(csv.reader((out / "history.csv").read_text().splitlines()))


@pytest.mark.usefixtures("without_export")
@pytest.mark.slow
def test_pretrained_weights_are_fine_tuned_and_resumed(folder, tmp_path, monkeypatch, capsys, request):
    epochs = []

    class Stops(Callback):
        at = -1

        def on_train_begin(self, n_epochs):
            epochs.append((n_epochs, [group[0].requires_grad for group in map(list, self.groups())]))

        def on_epoch_end(self, epoch):
            if len(epochs) == Stops.at:
                raise KeyboardInterrupt

        def groups(self):
            return [[p for layer in group for p in layer.parameters()] for group in self.learn.layer_groups]

    def fine_tune(learn, *arguments, **options):
        Stops.learn = learn
        return original(learn, *arguments, callbacks=Stops(), **options)

    original = Learner.fine_tune
    monkeypatch.setattr(Learner, "fine_tune", fine_tune)
    command = ["train", str(folder / "images"), "--weights", str(folder / "weights.pth"), "--arch", ARCH]
    command += ["--lr", "1e-3", "--bs", "16", "--epochs", "2", "--seed", "5", "--checkpoint"]
    assert cli.main([*command, "--out", str(tmp_path / "whole")]) == 0
    printed = capsys.readouterr().out
    assert "The normalization that these weights expect is unknown" in printed
    assert "First one epoch for the new head alone, then 2 for all layers, with learning rates up to 0.0005" in printed
    assert epochs == [(1, [False, False, True]), (2, [True, True, True])]
    whole, rows = parts_of(tmp_path / "whole")
    assert [row[0] for row in rows] == ["epoch", "0", "1", "2"]
    page = (tmp_path / "whole" / "report.html").read_text("utf-8")
    assert page.count("Losses (") == 4  # of the new head and of all layers, in caption and alternative text
    assert not list((tmp_path / "whole").glob("*.checkpoint"))
    request.getfixturevalue("without_plots")
    for at in (1, 2):  # in the epoch of the head, and in those of all layers
        out, Stops.at = tmp_path / f"stopped{at}", at
        epochs.clear()
        assert cli.main([*command, "--out", str(out)]) == 130
        Stops.at = -1
        assert cli.main(["train", "--resume", str(out)]) == 0
        resumed, resumed_rows = parts_of(out)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert [row[:-1] for row in resumed_rows] == [row[:-1] for row in rows]


@pytest.mark.usefixtures("without_export", "without_plots")
def test_a_slow_pretrained_network_trains_with_the_default_of_fine_tune(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learning_rate, "SECONDS", 0)
    command = ["train", str(folder / "images"), "--weights", str(folder / "weights.pth"), "--arch", ARCH, *TRAIN]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "learning rate of 0.002, the default: a step takes" in capsys.readouterr().out
    assert inspect.signature(Learner.fine_tune).parameters["base_lr"].default == FINE_TUNE_LR == 2e-3


def test_weights_that_cannot_be_downloaded_name_the_option(folder, tmp_path, monkeypatch, capsys):
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    command = ["train", str(folder / "images"), "--bs", "16", "--pretrained", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    lines = error.splitlines(keepends=True)
    error = "".join(lines[1:] if lines[0].startswith("Downloading: ") else lines)  # a line of torch 2.6
    assert error.startswith("minifast: The weights of resnet18 cannot be downloaded from")
    assert error.endswith("run the command again; or give a copy with --weights FILE, or leave --pretrained out.\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_predictions_of_a_fine_tuned_network_are_those_of_the_learner(folder, tmp_path, capsys):
    command = ["train", str(folder / "images"), "--weights", str(folder / "weights.pth"), "--arch", ARCH, *TRAIN]
    assert cli.main([*command, "--lr", "1e-3", "--out", str(tmp_path / "out")]) == 0
    images = sorted((folder / "images" / "valid").glob("*/*.png"))
    capsys.readouterr()
    assert cli.main(["predict", str(tmp_path / "out"), *map(str, images), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    data = ImageDataBunch.from_folder(folder / "images", bs=8, device="cpu")
    learn = vision_learner(data, ARCH, pretrained=False, path=tmp_path / "out", model_dir=".", silent=True)
    learn.load("model")
    for record, image in zip(records, images, strict=True):
        expected = learn.predict(image)[2].tolist()
        assert list(record["probabilities"].values()) == pytest.approx(expected, abs=1e-4)
