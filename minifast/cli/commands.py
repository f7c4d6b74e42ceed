"""The commands ``train``, ``predict``, ``compare`` and ``schedule``; ``env`` and ``cache`` are in ``environment``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from minifast.cli.environment import cache as cache
from minifast.cli.environment import env as env
from minifast.errors import DownloadError, MinifastError
from minifast.utils.checks import did_you_mean
from minifast.utils.folders import home
from minifast.utils.text import text_table, write_text

DEFAULT_DATA = "mnist_sample"
DOWNLOAD_TIMEOUT = 6.0  # seconds; without a network the first line of output comes within ten seconds


class UsageError(Exception):
    """The command's arguments cannot work: exit code 2."""


def train(options: argparse.Namespace) -> None:
    """Find a learning rate, train with the 1cycle policy, and write the results, also after an early end."""
    out = options.out or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if out == Path():
        raise UsageError("--out is the current folder; give another folder for the results.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder.")
    if existing := [name for name in ("model.pth", "history.csv") if (out / name).exists()]:
        raise UsageError(
            f"--out {out} already has {existing[0]} of another training; give another folder, or remove it."
        )
    folder = find_data(options.data)
    use_file_backend()

    import torch

    from minifast.learner.learner import Learner
    from minifast.metrics.functions import accuracy

    seed = torch.seed() % 2**31 if options.seed is None else options.seed
    torch.manual_seed(seed)
    data = make_data(folder, options, seed)
    model = make_model(options.arch, data.c or 0)
    learn = Learner(data, model, metrics=[accuracy], wd=options.wd, path=out, model_dir=".")
    try:
        out.mkdir(parents=True, exist_ok=True)  # now, because an error after the training would waste it
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made ({error.strerror}); give another folder.") from error
    write_text(f"{len(data.train_ds)} training and {len(data.valid_ds)} validation images of {data.c} classes.")
    figures: dict[str, Any] = {}
    lr = options.lr
    try:
        if lr == "auto":
            write_text("Looking for a learning rate.")
            learn.silent = True
            result = learn.lr_find(repeats=3)
            learn.silent = False
            figures["lr_find.png"] = result.plot(return_fig=True)
            if result.suggestion is None:
                raise result.error or MinifastError("lr_find suggests no learning rate; pass one with --lr.")
            lr = result.suggestion
            write_text(f"Training with a maximum learning rate of {lr:.2g}.")
        learn.fit_one_cycle(options.epochs, lr)
    finally:
        record = {name: value for name, value in vars(options).items() if name not in ("command", "debug")}
        record |= {"data": str(folder), "out": str(out), "device": str(data.device), "seed": seed}
        record |= {"lr": lr, "lr_option": options.lr, "classes": data.classes, "versions": versions()}
        written = write_results(out, learn, figures, record)
        write_text(f"Wrote {', '.join(written)}\nto {out}.")
    score = learn.recorder.metrics[-1][0]
    if score < 1.05 / (data.c or 1):
        write_text(f"An accuracy of {score:.3f} is no better than chance: try another --seed or a lower --lr.")


def predict(options: argparse.Namespace) -> None:
    """Print the class of images and its probability."""
    if options.model.is_dir():
        raise UsageError(f"{options.model} is a folder; give the model's file in it, such as export.pkl.")
    for path in (options.model, *options.images):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give images, such as {path}/*.png.")
        if not path.is_file():
            raise UsageError(f"There is no file {path}; check the path.")

    from minifast.data.bunch import DatasetType
    from minifast.learner.loading import load_learner

    learn = load_learner(options.model, test=options.images, device=check_device(options.device))
    classes = learn.data.classes
    if classes is None:
        raise MinifastError(f"The model in {options.model} has no classes; predict with load_learner in Python.")
    predictions, _ = learn.get_preds(DatasetType.Test)
    names = [str(path) for path in options.images]
    best = [(names[i], str(classes[int(row.argmax())]), float(row.max())) for i, row in enumerate(predictions)]
    if options.json:
        records = [
            {
                "image": name,
                "class": category,
                "probability": probability,
                "probabilities": dict(zip(map(str, classes), row, strict=True)),
            }
            for (name, category, probability), row in zip(best, predictions.tolist(), strict=True)
        ]
        write_text(json.dumps(records, indent=2, ensure_ascii=False))
    elif len(best) == 1:
        write_text(f"{best[0][1]}  {best[0][2]:.4f}")
    else:
        rows = [(name, category, f"{probability:.4f}") for name, category, probability in best]
        write_text(text_table([("image", "class", "probability"), *rows], right=2))


def compare(options: argparse.Namespace) -> None:
    """Train with several schedules over the same seeds, print the comparison and write its plot."""
    from minifast.comparison import compare as compare_configurations
    from minifast.learner.learner import Learner
    from minifast.metrics.functions import accuracy
    from minifast.schedules.registry import SCHEDULES

    check_figure_suffix(options.out)
    configurations = {name: SCHEDULES[check_schedule(name, "--schedules")].of(options.lr) for name in options.schedules}
    if len(configurations) < 2:
        raise UsageError("--schedules needs two or more different schedules to compare.")
    folder = find_data(options.data)
    use_file_backend()
    data = make_data(folder, options, 0)

    def make_learner() -> Learner:
        return Learner(data, make_model(options.arch, data.c or 0), metrics=[accuracy], wd=options.wd)

    comparison = compare_configurations(make_learner, configurations, options.epochs, options.seeds)
    write_text(comparison)
    if any(comparison.runs.values()):
        save_figure(comparison.plot(return_fig=True), options.out)
        write_text(f"Wrote {options.out}.")
    if comparison.ended_by is not None:
        raise comparison.ended_by


def schedule(options: argparse.Namespace) -> None:
    """Plot a schedule, or list all."""
    from minifast import plotting
    from minifast.schedules.registry import SCHEDULES

    if options.list or options.name is None:
        width = max(map(len, SCHEDULES))
        write_text("\n".join(f"{name:{width}}  {named.does}" for name, named in SCHEDULES.items()))
        if not options.list:
            raise UsageError("Give the name of a schedule, such as minifast schedule one_cycle.")
        return
    check_figure_suffix(options.out)
    use_file_backend()

    named = SCHEDULES[check_schedule(options.name, "NAME")]
    schedules = named.of(options.lr)
    progress = [i / 1000 for i in range(1001)]
    axes = plotting.axes_for(None, len(schedules))
    for ax, (name, function) in zip(axes, schedules.items(), strict=True):
        ax.plot([options.epochs * p for p in progress], [function(p) for p in progress])
        ax.set_xlabel("epoch")
        ax.set_ylabel(plotting.NAMES[name])
    axes[0].set_title(f"{options.name}: {named.does}")
    save_figure(plotting.finish(axes, True), options.out)
    write_text(f"Wrote {options.out}.")


def check_schedule(name: str, option: str) -> str:
    """Return ``name`` if there is a schedule of that name."""
    from minifast.schedules.registry import SCHEDULES

    if name not in SCHEDULES:
        raise UsageError(
            f"{option} {name} is not a schedule; minifast schedule --list shows all.{did_you_mean(name, SCHEDULES)}"
        )
    return name


def check_figure_suffix(out: Path) -> None:
    """Raise an error, before any work, if the figure's format cannot be written."""
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--out {out} must end in .png, .pdf or .svg.")


def save_figure(figure: Any, out: Path) -> None:
    """Write a figure, completely or not at all."""
    from minifast.utils.files import replacing

    with replacing(out) as file:
        figure.savefig(file, dpi=120, format=out.suffix.removeprefix("."))


def use_file_backend() -> None:
    """Select the matplotlib backend that only writes files."""
    import matplotlib as mpl

    mpl.use("agg")


def make_data(folder: Path, options: argparse.Namespace, seed: int) -> Any:
    """Return the images of a folder with the options' split, size and batch size."""
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
    """Return the versions of the packages that results depend on."""
    from importlib import metadata

    from minifast import __version__

    return {"minifast": __version__, **{name: metadata.version(name) for name in ("torch", "torchvision")}}


def check_device(name: str | None) -> str | None:
    """Return ``name`` if torch can use that device here."""
    import torch

    if name is not None:
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"--device {name} is not available here; leave it out, or pass cpu.") from error
    return name


def find_data(data: str) -> Path:
    """Return a folder, from a path or the name of a data set; without a network, generated data for the default."""
    from minifast.data.download import URLs, untar_data

    if Path(data).is_dir():
        return Path(data)
    names = {name.lower(): address for name, address in vars(URLs).items() if name.isupper()}
    if data.lower() not in names:
        raise UsageError(f"{data} is neither a folder nor the name of a data set.{did_you_mean(data.lower(), names)}")
    try:
        return untar_data(names[data.lower()], timeout=DOWNLOAD_TIMEOUT)
    except DownloadError as error:
        archive = f"{names[data.lower()].rpartition('/')[2]}.tgz"
        if data.lower() != DEFAULT_DATA or any(p.exists() for p in (Path("data") / archive, home() / "data" / archive)):
            raise  # the user's own archive must not be replaced by other images
        from minifast.data.synthetic import generate_sample

        write_text(f"{' '.join(str(error).split())} Training on generated images of 3s and 7s instead.")
        return generate_sample()


def make_model(arch: str, n_classes: int) -> Any:
    """Return an untrained model for images of ``n_classes`` classes."""
    from minifast.models import simple_cnn

    if arch == "simple_cnn":
        return simple_cnn((3, 16, 16, n_classes))
    from torchvision import models

    names = models.list_models(module=models)
    if arch not in names:
        raise UsageError(
            f"--arch {arch} is not a classifier of torchvision.{did_you_mean(arch, ['simple_cnn', *names])}"
        )
    return models.get_model(arch, weights=None, num_classes=n_classes)


def export_model(learn: Any) -> list[str]:
    """Write the file for ``minifast predict`` and return its name; a model without an export is not an error."""
    try:
        learn.export()
    except MinifastError as error:
        write_text(f"The model is in model.pth only. {error}")
        return []
    return ["export.pkl"]


def write_results(out: Path, learn: Any, figures: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Write model, history, figures and options into ``out``, each file completely or not at all; return the names."""
    import matplotlib.pyplot as plt

    from minifast.utils.files import replacing, write_rows

    recorder = learn.recorder
    written: list[str] = []
    if recorder.nb_batches and not recorder.silent:  # the record of lr_find is silent
        figures["schedule.png"] = recorder.plot_lr(show_moms=True, return_fig=True)
        figures["losses.png"] = recorder.plot_losses(return_fig=True)
        learn.save("model")
        written = ["model.pth", *export_model(learn)]
        rows = [[*row[:-1], round(row[-1], 3)] for row in recorder.rows]
        write_rows([recorder.names, *rows], out / "history.csv")
        written.append("history.csv")
    for name, figure in figures.items():
        save_figure(figure, out / name)
        plt.close(figure)
    with replacing(out / "options.json") as file:
        file.write_text(json.dumps(options, indent=2, default=str) + "\n")
    return [*written, *figures, "options.json"]
