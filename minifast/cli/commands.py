"""What the commands do: train on pictures, predict some, compare schedules, draw one."""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

from minifast import plotting
from minifast.errors import DownloadError, MinifastError
from minifast.utils.checks import did_you_mean

DEFAULT_DATA = "mnist_sample"


WAIT = 6.0  # seconds for a server's answer, so that a machine without network is told so within ten


class UsageError(Exception):
    """The command was called in a way that cannot work."""


def train(options: argparse.Namespace) -> None:
    """Find a learning rate, train one cycle, and write the results, also of a training that ended early."""
    out = options.out or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if out == Path():
        raise UsageError("--out is the current folder; give a folder for the results.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder.")
    if there := [name for name in ("model.pth", "history.csv") if (out / name).exists()]:
        raise UsageError(f"--out {out} holds another training's {there[0]}; name another folder, or remove it.")
    folder = find_data(options.data)
    without_a_display()

    import torch

    from minifast.learner.learner import Learner
    from minifast.metrics.functions import accuracy

    if options.seed is None:
        options.seed = torch.seed() % 2**31
    torch.manual_seed(options.seed)
    data = make_data(folder, options, options.seed)
    model = make_model(options.arch, data.c or 0)
    learn = Learner(data, model, metrics=[accuracy], wd=options.wd, path=out, model_dir=".")
    try:
        out.mkdir(parents=True, exist_ok=True)  # before the training, which a folder that cannot be made would waste
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made ({error.strerror}); give another folder.") from error
    print(f"{len(data.train_ds)} training and {len(data.valid_ds)} validation pictures of {data.c} classes.")
    pictures: dict[str, Any] = {}
    rate = options.lr
    try:
        if rate == "auto":
            print("Looking for a learning rate.", flush=True)
            learn.silent = True
            found = learn.lr_find(repeats=3)
            learn.silent = False
            pictures["lr_find.png"] = found.plot(return_fig=True)
            if found.suggestion is None:
                said = found.reason.replace("the curve with learn.recorder.plot()", "lr_find.png")
                raise MinifastError(f"{said} Or give --lr a rate.")
            rate = found.suggestion
            print(f"Training at a highest learning rate of {rate:.2g}.", flush=True)
        learn.fit_one_cycle(options.epochs, rate)
    finally:
        ran = {name: value for name, value in vars(options).items() if name not in ("command", "debug")}
        ran |= {"data": str(folder), "out": str(out), "device": str(data.device), "lr": rate, "lr_option": options.lr}
        written = write_results(out, learn, pictures, {**ran, "classes": data.classes, "versions": versions()})
        print(f"Wrote {', '.join(written)}\nto {out}.", flush=True)
    score = learn.recorder.metrics[-1][0]
    if score < 1.05 / (data.c or 1):
        print(f"An accuracy of {score:.3f} is no better than chance: try another --seed, or give a lower --lr.")


def predict(options: argparse.Namespace) -> None:
    """Say of pictures which class they are."""
    if options.model.is_dir():
        raise UsageError(f"{options.model} is a folder; name the model's file in it, such as export.pkl.")
    for path in (options.model, *options.images):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name pictures, such as {path}/*.png.")
        if not path.is_file():
            raise UsageError(f"There is no file {path}; check the path.")

    from minifast.data.bunch import DatasetType
    from minifast.learner.loading import load_learner

    learn = load_learner(options.model, test=options.images, device=check_device(options.device))
    classes = learn.data.classes
    if classes is None:
        raise MinifastError(f"{options.model} was trained without classes; use load_learner in Python.")
    predictions, _ = learn.get_preds(DatasetType.Test)
    names = [str(path) for path in options.images]
    best = [(names[i], str(classes[int(row.argmax())]), float(row.max())) for i, row in enumerate(predictions)]
    if options.json:
        each = [dict(zip(map(str, classes), row, strict=True)) for row in predictions.tolist()]
        found = zip(best, each, strict=True)
        rows = [{"picture": a, "class": b, "probability": p, "probabilities": ps} for (a, b, p), ps in found]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif len(best) == 1:
        print(f"{best[0][1]}  {best[0][2]:.4f}")
    else:
        table = [("picture", "class", "probability"), *((a, b, f"{p:.4f}") for a, b, p in best)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        print("\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}" for a, b, c in table))


def compare(options: argparse.Namespace) -> None:
    """Train with several schedules over the same seeds, and say what they reach."""
    from minifast.comparison import compare as compare_recipes
    from minifast.learner.learner import Learner
    from minifast.metrics.functions import accuracy
    from minifast.schedules.registry import SCHEDULES

    check_picture(options.out)
    recipes = {name: SCHEDULES[known(name, "--schedules")].of(options.lr) for name in options.schedules}
    if len(recipes) < 2:
        raise UsageError("--schedules needs two or more different ones to compare.")
    folder = find_data(options.data)
    without_a_display()
    data = make_data(folder, options, 0)

    def make_learner() -> Learner:
        return Learner(data, make_model(options.arch, data.c or 0), metrics=[accuracy], wd=options.wd)

    found = compare_recipes(make_learner, recipes, options.epochs, options.seeds)
    print(found)
    if any(found.runs.values()):
        save(found.plot(return_fig=True), options.out)
    if found.ended_by is not None:
        raise found.ended_by


def schedule(options: argparse.Namespace) -> None:
    """Draw a schedule, or list all."""
    from minifast.schedules.registry import SCHEDULES

    if options.list or options.name is None:
        width = max(map(len, SCHEDULES))
        print("\n".join(f"{name:{width}}  {named.does}" for name, named in SCHEDULES.items()))
        if not options.list:
            raise UsageError("Name a schedule of these, such as minifast schedule one_cycle.")
        return
    check_picture(options.out)
    without_a_display()

    named = SCHEDULES[known(options.name, "NAME")]
    schedules = named.of(options.lr)
    progress = [i / 1000 for i in range(1001)]
    axes = plotting.axes_for(None, len(schedules))
    for ax, (name, one) in zip(axes, schedules.items(), strict=True):
        ax.plot([options.epochs * p for p in progress], [one(p) for p in progress])
        ax.set_xlabel("epoch")
        ax.set_ylabel(plotting.NAMES[name])
    axes[0].set_title(f"{options.name}: {named.does}")
    save(plotting.finish(axes, True), options.out)


def known(name: str, option: str) -> str:
    """Return a schedule's name, if there is one of that name."""
    from minifast.schedules.registry import SCHEDULES

    if name not in SCHEDULES:
        raise UsageError(
            f"{option} {name} is no schedule; minifast schedule --list shows them.{did_you_mean(name, SCHEDULES)}"
        )
    return name


def check_picture(out: Path) -> None:
    """Refuse a picture of another kind than can be written, before any work."""
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--out {out} must end in .png, .pdf or .svg.")


def save(figure: Any, out: Path) -> None:
    """Write a picture, whole or not at all, and say where."""
    from minifast.utils.files import replacing

    with replacing(out) as file:
        figure.savefig(file, dpi=120, format=out.suffix.removeprefix("."))
    print(f"Wrote {out}.")


def without_a_display() -> None:
    """Let matplotlib draw into files only."""
    import matplotlib as mpl

    mpl.use("agg")


def make_data(folder: Path, options: argparse.Namespace, seed: int) -> Any:
    """Return the pictures of a folder, as the options say."""
    from minifast.data.images.image_bunch import ImageDataBunch

    return ImageDataBunch.from_folder(
        folder,
        valid_pct=options.valid_pct,
        seed=seed,
        size=options.size,
        bs=options.bs,
        device=check_device(options.device),
    )


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from importlib import metadata

    from minifast import __version__

    return {"minifast": __version__, **{name: metadata.version(name) for name in ("torch", "torchvision")}}


def check_device(name: str | None) -> str | None:
    """Return ``name`` if this machine has that device."""
    import torch

    if name is not None:
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"--device {name} is not to be had here; leave it out, or give cpu.") from error
    return name


def find_data(data: str) -> Path:
    """Return the folder that ``data`` means: a folder, or a data set's name; the default's stand-in without network."""
    from minifast.data.download import URLs, home, untar_data

    if Path(data).is_dir():
        return Path(data)
    names = {name.lower(): address for name, address in vars(URLs).items() if name.isupper()}
    if data.lower() not in names:
        raise UsageError(f"{data} is neither a folder nor the name of a data set.{did_you_mean(data.lower(), names)}")
    try:
        return untar_data(names[data.lower()], timeout=WAIT)
    except DownloadError as error:
        archive = f"{names[data.lower()].rpartition('/')[2]}.tgz"
        if data.lower() != DEFAULT_DATA or any(p.exists() for p in (Path("data") / archive, home() / "data" / archive)):
            raise  # an archive that the user put there is not to be replaced by other pictures
        from minifast.data.synthetic import generate_sample

        print(f"{' '.join(str(error).split())} Training on a drawn sample of 3s and 7s instead.", flush=True)
        return generate_sample()


def make_model(arch: str, n_classes: int) -> Any:
    """Return an untrained model for pictures of ``n_classes``."""
    from minifast.models import simple_cnn

    if arch == "simple_cnn":
        return simple_cnn((3, 16, 16, n_classes))
    from torchvision import models

    names = models.list_models(module=models)
    if arch not in names:
        raise UsageError(f"--arch {arch} is no classifier of torchvision.{did_you_mean(arch, ['simple_cnn', *names])}")
    return models.get_model(arch, weights=None, num_classes=n_classes)


def export(learn: Any) -> list[str]:
    """Write what ``minifast predict`` reads, and return its name; a model that cannot be exported is no failure."""
    try:
        learn.export()
    except MinifastError as error:
        print(f"The model is kept in model.pth alone. {error}", flush=True)
        return []
    return ["export.pkl"]


def write_results(out: Path, learn: Any, pictures: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Write model, history, pictures and options into ``out``, each file whole or not at all; return their names."""
    import matplotlib.pyplot as plt

    from minifast.utils.files import replacing

    recorder = learn.recorder
    written: list[str] = []
    if recorder.nb_batches and not recorder.silent:  # the finder's record is silent, and no training
        pictures["schedule.png"] = recorder.plot_lr(show_moms=True, return_fig=True)
        pictures["losses.png"] = recorder.plot_losses(return_fig=True)
        learn.save("model")
        written = ["model.pth", *export(learn)]
        with replacing(out / "history.csv") as file, file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(recorder.names)
            writer.writerows([*row[:-1], round(row[-1], 3)] for row in recorder.rows)
        written.append("history.csv")
    for name, figure in pictures.items():
        with replacing(out / name) as file:
            figure.savefig(file, dpi=120, format="png")
        plt.close(figure)
    with replacing(out / "options.json") as file:
        file.write_text(json.dumps(options, indent=2, default=str) + "\n")
    return [*written, *pictures, "options.json"]
