"""The options of the command line, its errors and exit codes. ``commands`` holds the commands."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from minifast.cli import commands
from minifast.cli.common import DEFAULT_DATA, UsageError
from minifast.errors import MinifastError
from minifast.utils.text import write_text


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from minifast import __version__

    root = argparse.ArgumentParser(
        prog="minifast", description="Train image classifiers with PyTorch and the 1cycle policy."
    )
    root.add_argument("--version", action="version", version=f"minifast {__version__}")
    subparsers = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    codes = "Exit codes: 0 success, 1 failure, 2 invalid arguments, 130 interrupted."
    add = subparsers.add_parser(
        "train",
        help="find a learning rate, train, and save the model and its plots",
        description="Find a learning rate, train on images with the 1cycle policy, print the metrics of each epoch, "
        "and save the model, the history and the plots.",
        epilog=f"Without a network and a copy of the default data, small generated images are used. {codes}",
    ).add_argument
    _add_training_options(add)
    add("--lr", type=_lr, default="auto", metavar="LR",
        help="the maximum learning rate, such as 5e-2; auto (the default) looks for one first")  # fmt: skip
    add("--seed", type=int, metavar="N", help="the random seed (default: a random one, saved in options.json)")
    add("--out", type=Path, metavar="DIR", help="the folder for the results (default: runs/DATE_TIME)")
    add("--nproc", type=_count, default=1, metavar="N",
        help="the number of processes that train together, one per GPU (default: 1)")  # fmt: skip
    add("--checkpoint", action="store_true", help="save the training every minute, so that --resume can continue it")
    add("--resume", type=Path, metavar="DIR",
        help="continue the interrupted training in this results folder, with its options")  # fmt: skip
    add = subparsers.add_parser(
        "predict",
        help="predict the class of images with a trained model",
        description="Print the class of each image and its probability. Reading the model's file runs no code in it.",
        epilog=codes,
    ).add_argument
    add("model", type=Path, metavar="MODEL", help="a results folder of train, or a file of learn.export")
    add("images", nargs="+", metavar="IMAGES",
        help="image files, folders (searched recursively) or patterns such as 'photos/*.jpg'")  # fmt: skip
    add("--csv", type=Path, metavar="FILE", help="write image, class and all probabilities to this file")
    add("--json", action="store_true", help="print JSON with the probability of every class")
    add("--device", metavar="NAME", help="cpu, cuda, mps, ... (default: the GPU if there is one)")
    add = subparsers.add_parser(
        "compare",
        help="compare learning rate schedules over several seeds",
        description="Train with several schedules over the same seeds, print a table and whether the difference "
        "between the best two is more than noise, and save a plot of learning rates and losses.",
        epilog=codes,
    ).add_argument
    _add_training_options(add)
    add("--lr", type=_number, default=5e-2, metavar="LR", help="the maximum learning rate (default: 5e-2)")
    add("--schedules", nargs="+", metavar="NAME", default=["constant", "step", "exponential", "one_cycle"],
        help="names from minifast schedule --list (default: constant step exponential one_cycle)")  # fmt: skip
    add("--seeds", type=_count, default=10, metavar="N", help="the number of runs of each schedule (default: 10)")
    add("--jobs", type=_count, default=1, metavar="N",
        help="the number of runs at the same time, each in its own process (default: 1); needs joblib")  # fmt: skip
    add("--out", type=Path, default=Path("comparison.png"), metavar="FILE",
        help="the file of the plot: .png, .pdf or .svg (default: comparison.png)")  # fmt: skip
    add = subparsers.add_parser(
        "schedule",
        help="plot a learning rate schedule",
        description="Plot the learning rate and momentum of a schedule over the epochs, without training.",
        epilog=codes,
    ).add_argument
    add("name", nargs="?", metavar="NAME", help="the schedule's name, such as one_cycle")
    add("--list", action="store_true", help="list all schedules")
    add("--lr", type=_number, default=1e-2, metavar="LR", help="the maximum learning rate (default: 1e-2)")
    add("--epochs", type=_count, default=1, metavar="N", help="the number of epochs on the axis (default: 1)")
    add("--out", type=Path, default=Path("schedule.png"), metavar="FILE",
        help="the file of the plot: .png, .pdf or .svg (default: schedule.png)")  # fmt: skip
    subparsers.add_parser(
        "env",
        help="print versions, devices and folders, for a bug report",
        description="Print the versions of Python and of the packages, the devices, and minifast's folders.",
        epilog=codes,
    )
    add = subparsers.add_parser(
        "cache",
        help="print the size of the cache of decoded images, or clear it",
        description="Print where the cache of decoded images is and how large. Downloaded data are not part of it.",
        epilog=codes,
    ).add_argument
    add("--clear", action="store_true", help="remove the cached images, without a question")
    for command in subparsers.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return root


def _add_training_options(add: Callable[..., object]) -> None:
    add("data", nargs="?", default=DEFAULT_DATA, metavar="DATA",
        help="a folder with train/CLASS/... and valid/CLASS/... (or, with --valid-pct, CLASS/...), or the name of a "
        "data set: mnist_sample (the default), mnist_tiny, mnist, cifar, ...")  # fmt: skip
    add(
        "--epochs", type=_count, default=2, metavar="N", help="the number of passes over the training data (default: 2)"
    )
    add("--bs", type=_count, default=64, metavar="N", help="the batch size (default: 64)")
    add("--wd", type=_decay, default=1e-2, metavar="X", help="weight decay (default: 0.01)")
    add("--arch", default="simple_cnn", metavar="NAME",
        help="simple_cnn (the default), or an untrained classifier of torchvision such as resnet18")  # fmt: skip
    add(
        "--size",
        type=_count,
        metavar="N",
        help="resize and crop the images to N x N pixels (needed for images of different sizes)",
    )
    add("--valid-pct", type=_fraction, metavar="X",
        help="use this fraction of the images for validation, if there is no folder valid")  # fmt: skip
    add("--resize", choices=("crop", "squish", "pad"), default="crop",
        help="how images of another aspect ratio get the --size: cut the center (the default), change the aspect "
        "ratio, or mirror the borders")  # fmt: skip
    add("--on-bad-image", choices=("raise", "skip"), default="raise",
        help="what to do about files that cannot be decoded: end with all their names (the default), or leave them "
        "out")  # fmt: skip
    add("--augment", action="store_true",
        help="flip, rotate, zoom and warp the training images at random and change their lighting")  # fmt: skip
    add("--device", metavar="NAME", help="cpu, cuda, mps, ... (default: the GPU if there is one)")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _number(text: str, allowed: Callable[[float], bool] = lambda value: value > 0, what: str = "above 0") -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and allowed(value)):
        raise argparse.ArgumentTypeError(f"must be a number {what}, got {text!r}")
    return value


def _fraction(text: str) -> float:
    return _number(text, lambda value: 0 < value < 1, "between 0 and 1, such as 0.2")


def _decay(text: str) -> float:
    return _number(text, lambda value: value >= 0, "of at least 0")


def _lr(text: str) -> float | str:
    return text if text == "auto" else _number(text, what="above 0, such as 5e-2, or auto")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the command line without the program's name. By default that of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    try:
        if getattr(options, "nproc", 1) > 1 and "WORLD_SIZE" not in os.environ:
            from minifast.distributed.launch import launch

            return launch(main, arguments, nproc=options.nproc)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: write_text(f"minifast: {message}", stream=sys.stderr)
            check_resume(options)
            options.command_line = shlex.join(["minifast", *arguments])
            getattr(commands, options.command)(options)
    except KeyboardInterrupt:
        write_text("minifast: interrupted", stream=sys.stderr)
        return 130
    except UsageError as error:
        write_text(f"minifast: {error}", stream=sys.stderr)
        return 2
    except Exception as error:
        if options.debug:
            raise
        message = error.cli_message if isinstance(error, MinifastError) else str(error)
        write_text(f"minifast: {' '.join(message.split()) or type(error).__name__}", stream=sys.stderr)
        return 1
    return 0


def check_resume(options: argparse.Namespace) -> None:
    """Raise an error if ``--resume`` is given with options that the interrupted training has already."""
    if getattr(options, "resume", None) is None:
        return
    defaults = vars(parser().parse_args(["train"]))
    free = ("resume", "device", "nproc", "debug")
    given = [name for name, value in vars(options).items() if name not in free and value != defaults[name]]
    if given:
        names = ", ".join(name.upper() if name == "data" else f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"--resume takes all options from the interrupted training; leave out {names}.")
