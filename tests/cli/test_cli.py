"""The command line: results, output, errors and exit codes."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow, write_images
from PIL import Image

from minifast import DownloadError, MinifastError, cli
from minifast.data import synthetic
from minifast.schedules import SCHEDULES

FIGURES = {"lr_find.png", "schedule.png", "losses.png"}
RESULTS = {"model.pth", "export.pkl", "history.csv", "options.json", "report.html", *FIGURES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small folder of generated 3s and 7s."""
    return synthetic.generate_sample(tmp_path_factory.mktemp("data") / "sample", n_train=320, n_valid=60)


def test_train_writes_model_history_plots_and_options(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["train", str(folder), "--bs", "16", "--epochs", "3", "--seed", "7", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == RESULTS
    rows = list(csv.reader((out / "history.csv").read_text().splitlines()))
    assert rows[0] == ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2"]
    options = json.loads((out / "options.json").read_text())
    assert options["seed"] == 7
    assert options["lr_option"] == "auto"
    assert 1e-4 < options["lr"] < 1
    assert "0.weight" in torch.load(out / "model.pth", weights_only=True)["model"]
    text = capsys.readouterr().out
    assert "320 training and 60 validation images of 2 classes" in text
    assert len([line for line in text.splitlines() if line[:3] in ("0  ", "1  ", "2  ")]) == 3
    assert "\r" not in text


@pytest.mark.usefixtures("without_export")
@pytest.mark.slow
def test_same_seed_same_model(folder, tmp_path):
    for out in ("a", "b"):
        command = ["train", str(folder), "--bs", "16", "--epochs", "1", "--lr", "1e-2", "--seed", "3"]
        assert cli.main([*command, "--out", str(tmp_path / out)]) == 0
    a, b = (torch.load(tmp_path / out / "model.pth", weights_only=True)["model"] for out in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (tmp_path / "a" / "lr_find.png").exists()


@pytest.mark.usefixtures("without_export", "without_plots")
def test_results_go_to_a_folder_of_their_own(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(folder), "--bs", "16", "--epochs", "1", "--lr", "1e-2"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "model.pth").is_file()


@pytest.mark.slow
def test_torchvision_model_and_sizes(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / "data" / name, 10, (40, 30), mode="RGB")
    command = ["train", str(tmp_path / "data"), "--valid-pct", "0.2", "--size", "32", "--arch", "squeezenet1_1"]
    assert cli.main([*command, "--bs", "8", "--epochs", "1", "--lr", "1e-3", "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--epochs", "0"], "must be a whole number of at least 1, got '0'"),
        (["train", "--epochs", "two"], "must be a whole number of at least 1, got 'two'"),
        (["train", "--lr", "-1"], "must be a number above 0, such as 5e-2, or auto, got '-1'"),
        (["train", "--lr", "quick"], "or auto, got 'quick'"),
        (["train", "--valid-pct", "2"], "must be a number between 0 and 1, such as 0.2, got '2'"),
        (["train", "--wd", "-1"], "must be a number of at least 0, got '-1'"),
        (["compare", "--lr", "nan"], "must be a number above 0, got 'nan'"),
        (["train", "--speed", "1"], "unrecognized arguments: --speed"),
        (["train", "--sise", "32"], "minifast train: error: unrecognized arguments: --sise. Did you mean --size?"),
        (["tarin"], "invalid choice: 'tarin' (choose from train, predict, compare, schedule, env, cache). Did you"),
        (["train", "--batch-size", "3"], "arguments: --batch-size. Did you mean --bs?"),
        (["train", "--learning-rate=1"], "arguments: --learning-rate=1. Did you mean --lr?"),
        (["train", "--model", "resnet18"], "arguments: --model. Did you mean --arch?"),
        (["predict", "--model", "out", "x.png"], "arguments: --model. Give MODEL without --model."),
        (["train", "--data", "x"], "arguments: --data. Give DATA without --data."),
        (["compare", "--dataset=x"], "arguments: --dataset=x. Give DATA without --dataset."),
        (["train", "--learning-rat", "0.1"], "arguments: --learning-rat. Did you mean --lr?"),
        (["train", "--bach-size=3"], "arguments: --bach-size=3. Did you mean --bs?"),
        (["predict", "--modle", "out", "x.png"], "arguments: --modle. Give MODEL without --modle."),
        ([], "error: a command is missing; give one of train, predict, compare, schedule, env, cache"),
        (["--batch-size", "8"], "error: a command is missing before --batch-size; give one of train, predict"),
        (["--debug"], "error: a command is missing before --debug; give one of train"),
        (["--epochs", "2", "train", "my images"], "error: the command must come first: minifast train --epochs 2 'my"),
    ],
)
def test_invalid_arguments_exit_with_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mnist_sampel"], "neither a folder nor the name of a data set. Did you mean mnist_sample?"),
        (["FOLDER", "--out", "FOLDER/labels.csv"], "is a file; give a folder"),
        *slow(  # importing timm takes seconds
            (
                ["FOLDER", "--arch", "resnet81"],
                "--arch: There is no model 'resnet81' in torchvision or timm. Did you mean resnet18?"
                if importlib.util.find_spec("timm")
                else "--arch: torchvision has no model 'resnet81'. Did you mean resnet18? For the models of timm, run",
            )
        ),
    ],
)
def test_unknown_names_exit_with_2(arguments, words, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *(argument.replace("FOLDER", str(folder)) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_failure_prints_one_line_and_exits_with_1(tmp_path, capsys):
    write_images(tmp_path / "data" / "train" / "a", 4)
    write_images(tmp_path / "data" / "valid" / "a", 4)
    broken = tmp_path / "data" / "train" / "a" / "2.png"
    broken.write_bytes(broken.read_bytes()[:300])
    command = ["train", str(tmp_path / "data"), "--bs", "2", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert str(broken) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="truncated"):
        cli.main([*command, "--debug"])


@pytest.mark.usefixtures("without_export")
@pytest.mark.parametrize("option", [(), ("--on-bad-image", "skip")])
@pytest.mark.parametrize(("values", "kind"), [((-2, 7.5), np.float32), ((0, 4000), np.uint16)])
def test_the_range_that_an_error_or_warning_suggests_can_be_given(option, values, kind, tmp_path, capsys):
    for part in ("train", "valid"):
        for name in ("a", "b"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(2):
                pixels = np.linspace(*values, 256).reshape(16, 16).astype(kind)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}.tif")
    command = ["train", str(tmp_path / "data"), "--bs", "2", "--epochs", "1", "--lr", "1e-2", *option]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main([*command, "--out", str(tmp_path / "out")]) == (1 if kind is np.float32 else 0)
    error = capsys.readouterr().err
    assert "black and white in all images as --value-range. The values" in error
    arguments = re.search(r"; (--value-range \S+ \S+) fits", error)[1].split()
    assert cli.main([*command, *arguments, "--out", str(tmp_path / "other")]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main([*command, *arguments[:2], arguments[1], "--out", str(tmp_path / "third")]) == 2
    assert "give the lower value first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "size", "words"),
    [
        (("train/a",), (4, 4), "Rename a folder to valid, or give --valid-pct 0.2 to choose the validation images"),
        (("train/a", "valid/a"), None, "Give a size to resize all to, such as --size 224."),
    ],
)
def test_an_error_names_the_command_lines_own_options(names, size, words, tmp_path, capsys):
    for i, name in enumerate(names):
        write_images(tmp_path / "data" / name, 4, size or (4 + i, 4))
    assert cli.main(["train", str(tmp_path / "data"), "--bs", "2", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "valid_pct" not in error
    assert "size=224" not in error


@pytest.mark.usefixtures("without_export", "without_plots")
@pytest.mark.parametrize("names", [("train", "valid"), ("valid",), ("train",), ()])
@pytest.mark.parametrize("share", [(), ("--valid-pct", "0.5")])
def test_a_folder_valid_that_is_split_at_random_is_announced(names, share, tmp_path, capsys):
    for name in names or ("",):
        for label in ("a", "b"):
            write_images(tmp_path / "data" / name / label, 4, (4, 4))
    arguments = ["--epochs", "1", "--lr", "1e-2", "--bs", "2", "--out", str(tmp_path / "out")]
    assert cli.main(["train", str(tmp_path / "data"), *share, *arguments]) == (1 if not share and len(names) < 2 else 0)
    line = f"With --valid-pct, the images in {' and '.join(names)} are split at random."
    assert (line in capsys.readouterr().out) == bool(share and "valid" in names)


@pytest.mark.usefixtures("without_export")
def test_results_are_written_after_an_early_end(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["train", str(folder), "--bs", "16", "--epochs", "60", "--lr", "1e9", "--seed", "1", "--out", str(out)]
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("minifast: The training loss is ")
    assert captured.err.count("\n") == 1
    assert f"to {out}." in captured.out
    assert (out / "options.json").is_file()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("without_export", "without_plots")
def test_an_accuracy_of_chance_prints_advice(folder, tmp_path, capsys):
    command = ["train", str(folder), "--bs", "16", "--epochs", "1", "--lr", "1e-12", "--seed", "2"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0
    words = r"is no better than chance. (All .* as [37]. )?20 optimizer steps are few: try --epochs 10"
    assert re.search(words, capsys.readouterr().out)


def test_a_damaged_archive_is_not_replaced_by_generated_images(empty_home, tmp_path, capsys):
    (empty_home / "data").mkdir(parents=True)
    (empty_home / "data" / "mnist_sample.tgz").write_bytes(b"truncated")
    assert cli.main(["train", "--out", str(tmp_path / "out")]) == 1
    assert "mnist_sample.tgz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cudaa"], "--device cudaa is not available here; leave it out, or pass cpu."),
        (["--out", "/proc/nothing/here"], "cannot be made"),
        (["--out", "."], "--out is the current folder"),
    ],
)
def test_unavailable_devices_and_folders_exit_with_2(arguments, words, folder, capsys):
    assert cli.main(["train", str(folder), "--bs", "16", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("without_export", "without_plots")
def test_a_warning_prints_one_line(tmp_path, capsys):
    for part in ("train", "valid"):
        for name in ("a", "b"):
            write_images(tmp_path / "data" / part / name, 2)
    command = ["train", str(tmp_path / "data"), "--epochs", "1", "--lr", "1e-2", "--out", str(tmp_path / "out")]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(command) == 0
    expected = "minifast: There are 4 training images, fewer than bs=64, so each epoch is one batch.\n"
    assert capsys.readouterr().err == expected


def test_interrupt(folder, tmp_path, monkeypatch, capsys):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minifast.learner.learner.Learner.fit_one_cycle", stop)
    assert cli.main(["train", str(folder), "--lr", "1e-2", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "minifast: interrupted\n"


@pytest.mark.usefixtures("without_export", "without_plots")
def test_without_a_network_generated_images_are_used(folder, tmp_path, monkeypatch, capsys):
    def no_network(*_: object, **__: object) -> Path:
        raise DownloadError("there is no network.")

    monkeypatch.setattr("minifast.data.download.untar_data", no_network)
    monkeypatch.setattr("minifast.data.synthetic.generate_sample", lambda: folder)
    assert cli.main(["train", "--bs", "16", "--epochs", "1", "--lr", "1e-2", "--out", str(tmp_path / "out")]) == 0
    assert "there is no network. Training on generated images" in capsys.readouterr().out
    assert cli.main(["train", "--out", str(tmp_path / "out")]) == 2
    assert (
        "has model.pth of an earlier training; choose another --out, or delete that folder." in capsys.readouterr().err
    )
    assert cli.main(["train", "cifar", "--out", str(tmp_path / "other")]) == 1
    assert capsys.readouterr().err == "minifast: there is no network.\n"


def test_module_and_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    version = subprocess.run(
        [sys.executable, "-m", "minifast", "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout.startswith("minifast 0.")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    for option in ("--epochs", "--lr", "--bs", "--arch", "--seed", "--out", "--debug", "Exit codes"):
        assert option in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", ["train", "predict", "compare", "schedule", "env", "cache"])
@pytest.mark.parametrize("columns", ["40", "80"])
def test_the_help_of_a_command_has_examples_that_can_be_parsed(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    examples = re.findall(r"^  minifast (.*)", text.partition("Example")[2], re.MULTILINE)
    assert examples
    for example in examples:
        assert cli.parser().parse_args(shlex.split(example)).command == command
    lines = text.partition("\n\n")[2].splitlines()  # below the usage
    others = [line for line in lines if not line.startswith("  minifast")]
    assert max(map(len, others)) <= int(columns)


@pytest.mark.slow
def test_an_empty_home_without_a_network_trains_on_generated_images(tmp_path):
    home = tmp_path / "empty"
    home.mkdir()
    dead = "http://127.0.0.1:9"  # no server listens here, and both variables send every request to it
    environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "http_proxy": dead, "https_proxy": dead}
    environment.pop("MINIFAST_HOME")
    command = [sys.executable, "-u", "-m", "minifast", "train", "--seed", "1", "--out", str(tmp_path / "out")]
    begin = time.monotonic()
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        seconds_to_first_line = time.monotonic() - begin
        rest = process.stdout.read()
    assert process.returncode == 0
    assert "generated images" in first
    assert seconds_to_first_line < 60  # at most ten seconds of waiting, and the imports of a busy machine
    assert {path.name for path in (tmp_path / "out").iterdir()} == RESULTS
    (last,) = [line for line in rest.splitlines() if line.startswith("1  ")]
    assert 0.9 < float(last.split()[3]) <= 1


# --- schedule and compare


@pytest.mark.parametrize("name", ["one_cycle", *slow(*(name for name in SCHEDULES if name != "one_cycle"))])
def test_a_schedule_is_plotted(name, tmp_path, capsys):
    out = tmp_path / "new" / "figure.svg"
    assert cli.main(["schedule", name, "--lr", "5e-2", "--epochs", "2", "--out", str(out)]) == 0
    assert f"Wrote {out}." in capsys.readouterr().out
    assert out.stat().st_size > 5000


@pytest.mark.parametrize("done", [0, *slow(3)])
def test_an_interrupted_comparison_prints_and_plots_the_finished_seeds(done, folder, tmp_path, capsys, monkeypatch):
    from minifast import Learner

    count = itertools.count()
    fit = Learner.fit_schedule

    def stops(learn, *arguments, **options):
        if next(count) == done:
            raise KeyboardInterrupt
        fit(learn, *arguments, **options)

    monkeypatch.setattr(Learner, "fit_schedule", stops)
    out = tmp_path / "comparison.png"
    arguments = ["--schedules", "constant", "cosine", "--seeds", "4", "--bs", "32", "--epochs", "1", "--lr", "1e-2"]
    assert cli.main(["compare", str(folder), *arguments, "--out", str(out)]) == 130
    captured = capsys.readouterr()
    assert f"Stopped after {done} of 8 runs." in captured.out
    assert captured.err == "minifast: interrupted\n"
    assert out.exists() == (done > 1)


def test_all_schedules_are_listed(capsys):
    assert cli.main(["schedule", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(SCHEDULES)


def test_schedules_are_compared(folder, tmp_path, capsys):
    out = tmp_path / "comparison.png"
    arguments = ["--schedules", "constant", "one_cycle", "--seeds", "2", "--bs", "32", "--epochs", "1", "--lr", "1e-2"]
    assert cli.main(["compare", str(folder), *arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["configuration", "accuracy", "valid_loss", "seconds"]
    assert [line.split()[0] for line in printed[1:3]] == ["constant", "one_cycle"]
    assert "2 seeds are too few" in printed[3]
    assert out.stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["schedule"], "Give the name of a schedule"),
        (
            ["schedule", "one_cylce"],
            "one_cylce is not a schedule; minifast schedule --list shows all. Did you mean one_cycle?",
        ),
        (["schedule", "one_cycle", "--out", "x.txt"], "--out x.txt must end in .png, .pdf or .svg"),
        (["compare", "--schedules", "constant", "stpe"], "--schedules stpe is not a schedule"),
        (["compare", "--out", "x.txt"], "--out x.txt must end in .png, .pdf or .svg"),
        (["compare", "--schedules", "constant", "constant"], "--schedules needs two or more different schedules"),
        (["compare", "nowhere"], "nowhere is neither a folder nor the name of a data set"),
    ],
)
def test_invalid_schedules_exit_with_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("without_plots")
def test_train_succeeds_if_the_model_cannot_be_exported(folder, tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise MinifastError("torch.export cannot follow it.")

    monkeypatch.setattr("minifast.learner.learner.Learner.export", refuse)
    command = ["train", str(folder), "--bs", "16", "--epochs", "1", "--lr", "1e-2", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert "The model is in model.pth only. torch.export cannot follow it." in capsys.readouterr().out
    assert (tmp_path / "out" / "model.pth").is_file()


@pytest.mark.slow
def test_jobs_run_at_the_same_time_and_print_the_same_numbers(folder, tmp_path, capsys):
    arguments = ["compare", str(folder), "--schedules", "constant", "one_cycle", "--seeds", "1", "--bs", "32"]
    arguments += ["--epochs", "1", "--lr", "1e-2", "--out", str(tmp_path / "comparison.png")]
    rows = []
    for jobs in ("1", "2"):
        assert cli.main([*arguments, "--jobs", jobs]) == 0
        rows.append([line.split()[:3] for line in capsys.readouterr().out.splitlines()[:3]])
    assert rows[0] == rows[1]
