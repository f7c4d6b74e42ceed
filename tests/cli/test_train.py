"""The command ``train``: its learning rate, resuming, augmentation and advice."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import slow, toy_learner
from torch.nn.functional import one_hot

from minifast import Callback, Learner, cli, load_learner
from minifast.cli import learning_rate
from minifast.cli.train import advise
from minifast.data import synthetic
from minifast.finder import FinderResult
from minifast.finder.learning import Evidence
from minifast.learner import running

FIGURES = {"lr_find.png", "schedule.png", "losses.png"}
RESULTS = {"model.pth", "export.pkl", "history.csv", "options.json", "report.html", *FIGURES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small folder of generated 3s and 7s."""
    return synthetic.generate_sample(tmp_path_factory.mktemp("data") / "sample", n_train=320, n_valid=60)


@pytest.mark.slow
def test_without_a_suggestion_the_training_takes_more_steps_and_then_a_careful_choice(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("minifast.learner.running.evidence_of", lambda runs, lrs: Evidence(learned=False))
    monkeypatch.setattr(learning_rate, "STEPS", (50, 80))
    monkeypatch.setattr(learning_rate, "SECONDS", 1000)
    out = tmp_path / "out"
    assert cli.main(["train", str(folder), "--bs", "16", "--epochs", "1", "--seed", "0", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"Looking for a learning rate: (\d+) steps, about \d+ seconds", text) == ["50", "80"]
    choice = "(a careful choice between .* shows and the default|the default)"
    reason = rf"Training with a maximum learning rate of \S+, {choice}: the loss"
    assert re.search(reason, text)
    assert "learn." not in text
    assert {path.name for path in out.iterdir()} == RESULTS
    assert 1e-5 < json.loads((out / "options.json").read_text())["lr"] < 1


@pytest.mark.usefixtures("without_export")
def test_a_slow_network_trains_with_the_default(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learning_rate, "SECONDS", 0)
    out = tmp_path / "out"
    assert cli.main(["train", str(folder), "--bs", "64", "--epochs", "1", "--out", str(out)]) == 0
    assert "learning rate of 0.003, the default: a step takes" in capsys.readouterr().out
    assert not (out / "lr_find.png").exists()


def test_one_class_cannot_be_trained(folder, tmp_path, capsys):
    for part in ("train", "valid"):
        (tmp_path / "one" / part).mkdir(parents=True)
        (tmp_path / "one" / part / "3").symlink_to(folder / part / "3")
    out = tmp_path / "out"
    assert cli.main(["train", str(tmp_path / "one"), "--out", str(out)]) == 1
    assert "has images of one class only, 3; give a folder" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "squeezenet1_1", "--bs", "1", "--size", "8"], "squeezenet1_1 cannot train on a batch of 1 images"),
        *slow(
            (
                ["--arch", "vit_b_16"],
                "vit_b_16 cannot train on a batch of 64 images of 28 x 28 pixels: Wrong image height",
            )
        ),
    ],
)
def test_a_network_that_does_not_take_the_images_is_an_error_before_the_training(
    arguments, words, folder, tmp_path, capsys
):
    assert cli.main(["train", str(folder), *arguments, "--lr", "1e-2", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Try --size 224" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_resize_and_bad_images_are_options(folder, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(folder, data)
    (data / "train" / "3" / "bad.png").write_bytes(b"no image")
    arguments = ["train", str(data), "--bs", "16", "--epochs", "1", "--lr", "1e-2", "--size", "20", "--out", str(out)]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.endswith("Or leave it out with --on-bad-image skip.\n")
    assert cli.main([*arguments, "--on-bad-image", "skip", "--resize", "pad"]) == 0
    assert "320 training and" in capsys.readouterr().out
    assert json.loads((out / "options.json").read_text())["resize"] == "pad"
    assert load_learner(out).data.resize == "pad"


def test_the_time_of_a_step_is_without_the_start_of_a_run():
    class Starts(Callback):
        def on_step_end(self, iteration):
            time.sleep(0.3 if iteration < 2 else 0.001)

    learn = toy_learner(callbacks=[Starts()])
    assert 0.001 < learning_rate.seconds_per_step(learn) < 0.05
    assert learn.silent
    assert [type(callback) for callback in learn.callbacks] == [Starts]


@pytest.mark.parametrize("per_step", [0.001, 0.05, 0.2, 10.0])
@pytest.mark.parametrize("n_batches", [2, 30, 1000])
def test_the_finder_takes_an_epoch_or_ten_seconds(per_step, n_batches, monkeypatch):
    steps = []

    def run(learn, num_it):
        steps.append(num_it)
        return FinderResult([[10 ** (i / 9 - 6) for i in range(num_it)]], [[1.0] * num_it], "the end")

    monkeypatch.setattr(learning_rate, "run_finder", run)
    monkeypatch.setattr(learning_rate, "seconds_per_step", lambda learn: per_step)
    learn = SimpleNamespace(data=SimpleNamespace(train_dl=range(n_batches)))
    lr, _, reason = learning_rate.choose_lr(learn)
    assert lr == 3e-3
    assert reason.startswith("the default: ")
    allowed = max(10, n_batches * per_step)
    assert max(steps, default=0) * per_step <= allowed
    assert bool(steps) == (int(allowed / per_step) >= 40)


@pytest.mark.parametrize("suggested", [1e-3, 0.05, 0.7])
def test_no_learning_rate_above_the_highest_is_chosen(suggested, monkeypatch):
    curve = [10 ** (i / 9 - 6) for i in range(50)]
    result = FinderResult([curve], [[1.0] * 50], "the end")
    result.suggestion = suggested
    monkeypatch.setattr(learning_rate, "run_finder", lambda learn, num_it: result)
    monkeypatch.setattr(learning_rate, "seconds_per_step", lambda learn: 0.001)
    lr, _, reason = learning_rate.choose_lr(SimpleNamespace(data=SimpleNamespace(train_dl=range(9))))
    assert lr == min(suggested, 0.05)
    assert ("0.7, is above the highest" in reason) == (suggested == 0.7)


@pytest.mark.usefixtures("without_export", "without_plots")
def test_a_stopped_training_is_resumed_with_its_options(folder, tmp_path, monkeypatch, capsys):
    fit, out = Learner.fit_one_cycle, tmp_path / "stopped"

    class Stops(Callback):
        fit_only = True
        at = 9

        def on_epoch_end(self, epoch):
            if epoch == Stops.at:
                raise KeyboardInterrupt

    def with_callback(learn, *arguments, **options):
        learn.callbacks.append(Stops())
        return fit(learn, *arguments, **options)

    monkeypatch.setattr(Learner, "fit_one_cycle", with_callback)
    command = ["train", str(folder), "--bs", "32", "--epochs", "3", "--lr", "1e-2", "--seed", "3", "--checkpoint"]
    assert cli.main([*command, "--out", str(tmp_path / "whole")]) == 0
    assert not list((tmp_path / "whole").glob("*.checkpoint"))
    Stops.at = 1
    assert cli.main([*command, "--out", str(out)]) == 130
    assert f"minifast train --resume {out} continues the training." in capsys.readouterr().out
    Stops.at = 9
    assert cli.main(["train", "--resume", str(out), "--bs", "16"]) == 2
    assert "--resume takes all options from the interrupted training; leave out --bs." in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(out)]) == 0
    models = [torch.load(tmp_path / name / "model.pth", weights_only=True)["model"] for name in ("whole", "stopped")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert len((out / "history.csv").read_text().splitlines()) == 4
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(out)]) == 2
    assert "the training is finished" in capsys.readouterr().err


@pytest.mark.usefixtures("without_export")
def test_ctrl_c_saves_the_batch_and_names_the_command(folder, tmp_path, monkeypatch, capsys):
    class Presses(Callback):
        at = 1

        def on_step_end(self, iteration):
            if iteration == Presses.at:
                signal.raise_signal(signal.SIGINT)

    fit, out = Learner.fit_one_cycle, tmp_path / "my results"
    monkeypatch.setattr(Learner, "fit_one_cycle", lambda *args, **kwargs: fit(*args, callbacks=[Presses()], **kwargs))
    command = ["train", str(folder), "--bs", "8", "--epochs", "2", "--lr", "1e-2", "--out", str(out)]
    assert cli.main([*command, "--checkpoint"]) == 130
    said = capsys.readouterr()
    held = f"{out / 'run.checkpoint'} holds epoch 0, batch 2"
    lines = [line for line in said.out.splitlines() if "esume" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"{held}: minifast train --resume '{out}' continues the training.")
    assert said.err == "minifast: interrupted\n"
    Presses.at = -1
    assert cli.main([*command, "--checkpoint"]) == 2
    assert f"stopped. minifast train --resume '{out}' continues the training; to start" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(out)]) == 0
    assert "Resuming the run 'run' at epoch 0, batch 2." in capsys.readouterr().out


@pytest.mark.usefixtures("without_export")
@pytest.mark.parametrize(("lr", "method"), [("auto", "find"), ("1e-2", "fit_one_cycle")])
@pytest.mark.parametrize(
    ("checkpoint", "how"), [(["--checkpoint"], "--resume"), ([], "only a training with --checkpoint can be resumed")]
)
@pytest.mark.parametrize("begins", [True, False])
def test_ctrl_c_says_once_what_the_command_can_do(
    begins, checkpoint, how, lr, method, folder, tmp_path, monkeypatch, capsys
):
    class Presses(Callback):
        def on_loss_begin(self):
            raise KeyboardInterrupt

    def stop(learn, *arguments, **options):
        if not begins:
            raise KeyboardInterrupt
        learn.callbacks = [Presses()]
        return run(learn, *arguments, **options)

    owner = running if method == "find" else Learner
    run = getattr(owner, method)
    monkeypatch.setattr(owner, method, stop)
    command = ["train", str(folder), "--bs", "8", "--lr", lr, "--out", str(tmp_path / "out"), *checkpoint]
    assert cli.main(command) == 130
    said = capsys.readouterr().out
    assert said.count(how) == 1, said
    assert "you can continue" not in said
    assert ("in epoch" in said) == (begins and method == "fit_one_cycle")


def test_the_command_says_what_it_reads_before_it_reads(folder, tmp_path, monkeypatch, capsys):
    said = []

    def read(*_: object, **__: object) -> None:
        said.extend(capsys.readouterr().out.splitlines())
        raise KeyboardInterrupt

    monkeypatch.setattr("minifast.data.images.image_bunch.ImageDataBunch.from_folder", read)
    assert cli.main(["train", str(folder), "--out", str(tmp_path / "out")]) == 130
    assert said == [f"Reading the images in {folder}."]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no options.json"),
        ("{", "options.json is damaged"),
        ('{"finished": false}', "was started without --checkpoint"),
        ('{"finished": true, "checkpoint": true}', "the training is finished"),
    ],
)
def test_what_cannot_be_resumed_exits_with_2(content, words, tmp_path, capsys):
    if content is not None:
        (tmp_path / "options.json").write_text(content)
    assert cli.main(["train", "--resume", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_resuming_a_folder_that_does_not_exist_says_so(tmp_path, capsys):
    assert cli.main(["train", "--resume", str(tmp_path / "nowhere")]) == 2
    assert f"--resume: there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err


@pytest.mark.usefixtures("without_export", "without_plots")
def test_augment_changes_the_training(folder, tmp_path):
    losses = []
    for options in ([], ["--augment"]):
        out = tmp_path / f"out{len(options)}"
        command = ["train", str(folder), "--bs", "32", "--epochs", "1", "--lr", "1e-2", "--seed", "3", *options]
        assert cli.main([*command, "--out", str(out)]) == 0
        losses.append((out / "history.csv").read_text().splitlines()[1].split(",")[1])
        assert json.loads((out / "options.json").read_text())["augment"] == bool(options)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("accuracy", "losses", "steps", "augment", "words"),
    [
        (0.5, (0.7, 0.69), 8, False, "no better than chance. 8 optimizer steps are few: try --epochs 50"),
        (0.5, (0.7, 0.1), 800, False, "so the model memorized: use more images, or --augment"),
        (0.5, (0.7, 0.7), 800, False, "did not fall: try --lr 0.002 or another --arch"),
        (0.9, (0.7, 0.3), 8, False, "8 optimizer steps are few"),
        (0.96, (0.7, 0.3), 8, False, ""),
        (0.8, (0.7, 0.1), 800, False, "3.0 times the training loss: try --augment"),
        (0.8, (0.7, 0.1), 800, True, ""),
        (0.95, (0.7, 0.2), 800, False, ""),
    ],
)
def test_advice_fits_what_happened(accuracy, losses, steps, augment, words):
    targets = torch.tensor([0, 1]).repeat(50)
    predicted = torch.where(torch.arange(100) < round(accuracy * 100), targets, 1 - targets)
    advice = advise(trained(predicted, targets, losses, steps), train_options(augment))
    assert words in advice
    assert "All validation images" not in advice
    assert bool(words) == bool(advice)


@pytest.mark.parametrize(
    ("losses", "steps", "lr", "words"),
    [
        ((0.7, 0.3), 800, "auto", "as cat. Use more images of the other classes, or try --lr 0.002."),
        ((0.7, 0.7), 800, "auto", "as cat. The training loss did not fall: try --lr 0.002 or another --arch, and"),
        ((0.7, 0.7), 800, 0.02, "as cat. The training loss did not fall: leave --lr out or try --lr 0.002, and"),
        ((0.7, 0.3), 8, "auto", "as cat. 8 optimizer steps are few"),
    ],
)
@pytest.mark.parametrize("n_cats", [50, 93])
def test_a_model_that_always_predicts_one_class_is_no_better_than_chance(n_cats, losses, steps, lr, words):
    learn = trained(torch.zeros(100, dtype=torch.int64), (torch.arange(100) >= n_cats).long(), losses, steps)
    advice = advise(learn, train_options(lr=lr))
    assert advice.startswith(
        f"An accuracy of 0.{n_cats}0 is no better than chance. All validation images are predicted "
    )
    assert words in advice


@pytest.mark.parametrize(("n_train", "least"), [(1, None), (20, 20), (64, 64), (65, 64)])
def test_a_smaller_batch_size_that_is_advised_changes_the_batches(n_train, least):
    words = f" or a smaller --bs than {least}" if least else ""
    targets = torch.tensor([0, 1]).repeat(50)
    advice = advise(trained(targets * 0, targets, (0.7, 0.6), 8, n_train), train_options())
    assert advice.endswith(f"try --epochs 50{words}.")


def trained(
    predicted: torch.Tensor, targets: torch.Tensor, losses: tuple[float, float], steps: int, n_train: int = 100
) -> SimpleNamespace:
    """Return what the advice reads of a learner."""
    metric = (predicted == targets).double().mean().item()
    recorder = SimpleNamespace(
        metrics=[[metric]], nb_batches=[steps], losses=losses, val_losses=[0.3], lrs=[0.001, 0.02, 0.0]
    )
    data = SimpleNamespace(c=2, labels=None, classes=["cat", "dog"], train_ds=range(n_train))
    return SimpleNamespace(recorder=recorder, data=data, get_preds=lambda: [one_hot(predicted, 2), targets])


def train_options(augment: bool = False, lr: object = "auto") -> SimpleNamespace:
    return SimpleNamespace(epochs=2, bs=64, lr=lr, augment=augment)
