"""The command line: its options, and what becomes of errors; ``commands`` does the work."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from minifast.cli import commands


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from minifast import __version__

    root = argparse.ArgumentParser(
        prog="minifast", description="Train image classifiers with PyTorch, by the 1cycle policy."
    )
    root.add_argument("--version", action="version", version=f"minifast {__version__}")
    subparsers = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    codes = "Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted."
    add = subparsers.add_parser(
        "train",
        help="find a learning rate, train one cycle, keep the model and its pictures",
        description="Find a learning rate, train one cycle on pictures, print the table, and keep the model, "
        "the history and the plots.",
        epilog=f"Without network and without a copy of the default data, a small sample is drawn instead. {codes}",
    ).add_argument
    _add_pictures(add)
    add("--lr", type=_rate, default="auto", metavar="RATE",
        help="the highest learning rate, such as 5e-2; auto (the default) takes what lr_find suggests")  # fmt: skip
    add("--seed", type=int, metavar="N", help="make the run repeatable; without it a seed is drawn and recorded")
    add("--out", type=Path, metavar="DIR", help="the folder for the results (default: runs/DATE_TIME)")
    add = subparsers.add_parser(
        "predict",
        help="say of pictures which class they are, with a model that train left",
        description="Say of each picture which class it is and how probable that is. Reading the model's file runs no "
        "code in it.",
        epilog=codes,
    ).add_argument
    add("model", type=Path, metavar="MODEL", help="what train or learn.export wrote, such as results/export.pkl")
    add("images", nargs="+", type=Path, metavar="IMAGE", help="pictures")
    add("--json", action="store_true", help="print JSON, with the probability of every class")
    add("--device", metavar="NAME", help="cpu, cuda, mps, … (default: the GPU if there is one)")
    add = subparsers.add_parser(
        "compare",
        help="train with several schedules over several seeds, and say whether the difference is noise",
        description="Train with several schedules over the same seeds, print a table and whether the difference "
        "between the first two is more than noise, and keep a picture of rates and losses.",
        epilog=codes,
    ).add_argument
    _add_pictures(add)
    add("--lr", type=_number, default=5e-2, metavar="RATE", help="the highest learning rate (default: 5e-2)")
    add("--schedules", nargs="+", metavar="NAME", default=["constant", "step", "exponential", "one_cycle"],
        help="what to compare of minifast schedule --list (default: constant step exponential one_cycle)")  # fmt: skip
    add("--seeds", type=_count, default=10, metavar="N", help="how many runs of each (default: 10)")
    add("--out", type=Path, default=Path("comparison.png"), metavar="FILE",
        help="where the picture goes (default: comparison.png)")  # fmt: skip
    add = subparsers.add_parser(
        "schedule",
        help="draw a schedule without training",
        description="Draw the learning rate, and the momentum that goes with it, over a training.",
        epilog=codes,
    ).add_argument
    add("name", nargs="?", metavar="NAME", help="the schedule's name, such as one_cycle")
    add("--list", action="store_true", help="list all schedules")
    add("--lr", type=_number, default=1e-2, metavar="RATE", help="the highest learning rate (default: 1e-2)")
    add("--epochs", type=_count, default=1, metavar="N", help="epochs on the axis (default: 1)")
    add("--out", type=Path, default=Path("schedule.png"), metavar="FILE",
        help="where the picture goes: .png, .pdf or .svg (default: schedule.png)")  # fmt: skip
    for command in subparsers.choices.values():
        command.add_argument("--debug", action="store_true", help="show the whole traceback of a failure")
    return root


def _add_pictures(add: Callable[..., object]) -> None:
    add("data", nargs="?", default=commands.DEFAULT_DATA, metavar="DATA",
        help="a folder with train/CLASS/… and valid/CLASS/… (or, with --valid-pct, CLASS/…), or the name of a "
        "data set: mnist_sample (the default), mnist_tiny, mnist, cifar, …")  # fmt: skip
    add("--epochs", type=_count, default=2, metavar="N", help="passes over the training data (default: 2)")
    add("--bs", type=_count, default=64, metavar="N", help="pictures a batch (default: 64)")
    add("--wd", type=_decay, default=1e-2, metavar="X", help="weight decay (default: 0.01)")
    add("--arch", default="simple_cnn", metavar="NAME",
        help="simple_cnn (the default), or a classifier of torchvision, such as resnet18, untrained")  # fmt: skip
    add("--size", type=_count, metavar="N", help="crop and scale the pictures to N × N (needed where sizes differ)")
    add("--valid-pct", type=_share, metavar="X",
        help="choose this share of the pictures for validation, where there is no folder valid")  # fmt: skip
    add("--device", metavar="NAME", help="cpu, cuda, mps, … (default: the GPU if there is one)")


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


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, such as 5e-2")
    return value


def _rate(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        return _number(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"minifast: {message}", file=sys.stderr)
            getattr(commands, options.command)(options)
    except KeyboardInterrupt:
        print("minifast: interrupted", file=sys.stderr)
        return 130
    except commands.UsageError as error:
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
