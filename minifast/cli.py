"""The command line: ``minifast train`` finds a learning rate, trains one cycle on pictures, and keeps the results."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minifast.errors import DownloadError, did_you_mean

DEFAULT_DATA = "mnist_sample"
WAIT = 6.0  # seconds for a server's answer, so that a machine without network is told so within ten


class WrongUseError(Exception):
    """The command was called in a way that cannot work."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from minifast import __version__

    root = argparse.ArgumentParser(
        prog="minifast", description="Train image classifiers with PyTorch, by the 1cycle policy."
    )
    root.add_argument("--version", action="version", version=f"minifast {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="find a learning rate, train one cycle, keep the model and its pictures",
        description="Find a learning rate, train one cycle on pictures, print the table, and keep the model, "
        "the history and the plots.",
        epilog="Without network and without a copy of the default data, a small sample is drawn to train on instead. "
        "Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.",
    )
    train.add_argument(
        "data", nargs="?", default=DEFAULT_DATA, metavar="DATA",
        help="a folder with train/CLASS/… and valid/CLASS/… (or, with --valid-pct, CLASS/…), or the name of a "
        "data set: mnist_sample (the default), mnist_tiny, mnist, cifar, …",
    )  # fmt: skip
    add = train.add_argument
    add("--epochs", type=_count, default=2, metavar="N", help="passes over the training data (default: 2)")
    add("--lr", type=_rate, default="auto", metavar="RATE",
        help="the highest learning rate, such as 5e-2; auto (the default) finds one")  # fmt: skip
    add("--bs", type=_count, default=64, metavar="N", help="pictures a batch (default: 64)")
    add("--wd", type=_decay, default=1e-2, metavar="X", help="weight decay (default: 0.01)")
    add("--arch", default="simple_cnn", metavar="NAME",
        help="simple_cnn (the default), or a classifier of torchvision, such as resnet18, untrained")  # fmt: skip
    add("--size", type=_count, metavar="N", help="crop and scale the pictures to N × N (needed where sizes differ)")
    add("--valid-pct", type=_share, metavar="X",
        help="choose this share of the pictures for validation, where there is no folder valid")  # fmt: skip
    add("--seed", type=int, metavar="N", help="make the run repeatable; without it a seed is drawn and recorded")
    add("--out", type=Path, metavar="DIR", help="the folder for the results (default: runs/DATE_TIME)")
    add("--device", metavar="NAME", help="cpu, cuda, mps, … (default: the GPU if there is one)")
    add("--debug", action="store_true", help="show the whole traceback of a failure")
    return root


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to below 1")
    return value


def _decay(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return value


def _rate(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, such as 5e-2, nor auto")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"minifast: {message}", file=sys.stderr)
            train(options)
    except KeyboardInterrupt:
        print("minifast: interrupted", file=sys.stderr)
        return 130
    except WrongUseError as error:
        print(f"minifast: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if options.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        message = message.replace("valid_pct=0.2", "--valid-pct 0.2").replace("size=224", "--size 224")
        print(f"minifast: {message}", file=sys.stderr)
        return 1
    return 0


def train(options: argparse.Namespace) -> None:
    """Find a learning rate, train one cycle, and write the results, also of a training that ended early."""
    out = options.out or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if out == Path():
        raise WrongUseError("--out is the current folder; give a folder for the results.")
    if out.exists() and not out.is_dir():
        raise WrongUseError(f"--out {out} is a file; give a folder.")
    folder = find_data(options.data)

    import matplotlib as mpl

    mpl.use("agg")
    import torch

    from minifast.data.image_bunch import ImageDataBunch
    from minifast.learner import Learner
    from minifast.metrics import accuracy
    from minifast.suggest import suggest_lr

    if options.seed is None:
        options.seed = torch.seed() % 2**31
    torch.manual_seed(options.seed)
    data = ImageDataBunch.from_folder(
        folder,
        valid_pct=options.valid_pct,
        seed=options.seed,
        size=options.size,
        bs=options.bs,
        device=check_device(options.device),
    )
    model = make_model(options.arch, data.c or 0)
    learn = Learner(data, model, metrics=[accuracy], wd=options.wd, path=out, model_dir=".")
    try:
        out.mkdir(parents=True, exist_ok=True)  # before the training, which a folder that cannot be made would waste
    except OSError as error:
        raise WrongUseError(f"--out {out} cannot be made ({error.strerror}); give another folder.") from error
    print(f"{len(data.train_ds)} training and {len(data.valid_ds)} validation pictures of {data.c} classes.")
    pictures: dict[str, Any] = {}
    rate = options.lr
    try:
        if rate == "auto":
            print("Looking for a learning rate.", flush=True)
            learn.silent = True
            learn.lr_find()
            learn.silent = False
            pictures["lr_find.png"] = learn.recorder.plot(suggestion=True, return_fig=True)
            rate = suggest_lr(learn.recorder.lrs, learn.recorder.losses)
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
            raise WrongUseError(f"--device {name} is not to be had here; leave it out, or give cpu.") from error
    return name


def find_data(data: str) -> Path:
    """Return the folder that ``data`` means: a folder, or a data set's name; the default's stand-in without network."""
    from minifast.data.urls import URLs, home, untar_data

    if Path(data).is_dir():
        return Path(data)
    names = {name.lower(): address for name, address in vars(URLs).items() if name.isupper()}
    if data.lower() not in names:
        raise WrongUseError(
            f"{data} is neither a folder nor the name of a data set.{did_you_mean(data.lower(), names)}"
        )
    try:
        return untar_data(names[data.lower()], timeout=WAIT)
    except DownloadError as error:
        archive = f"{names[data.lower()].rpartition('/')[2]}.tgz"
        if data.lower() != DEFAULT_DATA or any(p.exists() for p in (Path("data") / archive, home() / "data" / archive)):
            raise  # an archive that the user put there is not to be replaced by other pictures
        from minifast.data.drawn import draw_sample

        print(f"{' '.join(str(error).split())} Training on a drawn sample of 3s and 7s instead.", flush=True)
        return draw_sample()


def make_model(arch: str, n_classes: int) -> Any:
    """Return an untrained model for pictures of ``n_classes``."""
    from minifast.models import simple_cnn

    if arch == "simple_cnn":
        return simple_cnn((3, 16, 16, n_classes))
    from torchvision import models

    names = models.list_models(module=models)
    if arch not in names:
        raise WrongUseError(
            f"--arch {arch} is no classifier of torchvision.{did_you_mean(arch, ['simple_cnn', *names])}"
        )
    return models.get_model(arch, weights=None, num_classes=n_classes)


def write_results(out: Path, learn: Any, pictures: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Write model, history, pictures and options into ``out``, each file whole or not at all; return their names."""
    import matplotlib.pyplot as plt

    from minifast.files import replacing

    recorder = learn.recorder
    written = []
    if recorder.nb_batches and not recorder.silent:  # the finder's record is silent, and no training
        pictures["schedule.png"] = recorder.plot_lr(show_moms=True, return_fig=True)
        pictures["losses.png"] = recorder.plot_losses(return_fig=True)
        learn.save("model")
        with replacing(out / "history.csv") as file, file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(recorder.names)
            writer.writerows([*row[:-1], round(row[-1], 3)] for row in recorder.rows)
        written = ["model.pth", "history.csv"]
    for name, figure in pictures.items():
        with replacing(out / name) as file:
            figure.savefig(file, dpi=120, format="png")
        plt.close(figure)
    with replacing(out / "options.json") as file:
        file.write_text(json.dumps(options, indent=2, default=str) + "\n")
    return [*written, *pictures, "options.json"]
