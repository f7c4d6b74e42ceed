"""The options of the command line, its errors and exit codes. ``commands`` holds the commands."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from minifast.cli import commands
from minifast.cli.common import DEFAULT_DATA, UsageError
from minifast.errors import MinifastError
from minifast.utils.checks import did_you_mean
from minifast.utils.public import name_meant
from minifast.utils.text import write_text

CODES = "Exit codes: 0 success, 1 failure, 2 invalid arguments, 130 interrupted."
# Names of options elsewhere that are no arguments of Python; ``OTHER_NAMES`` has those that are.
CLI_NAMES = {
    **dict.fromkeys(("model", "model_name"), "arch"),
    **dict.fromkeys(("output", "output_dir", "out_dir", "save_dir", "results"), "out"),
    **dict.fromkeys(("gpu", "cuda"), "device"),
    **dict.fromkeys(("dataset", "data_dir", "data_path", "path", "folder"), "data"),
    **dict.fromkeys(("labels", "csv_labels"), "csv"),
}
EXAMPLES = {
    "train": """Examples:
  minifast train my_images --size 128 --out results
  minifast train my_images --size 224 --pretrained --epochs 3
  minifast train my_images --size 128 --csv labels.csv --label-delim ' '
  minifast train --resume runs/2026-01-31_12-00-00
""",
    "predict": """Examples:
  minifast predict results photo.jpg
  minifast predict results photos 'more/*.png' --csv predictions.csv
""",
    "compare": """Examples:
  minifast compare my_images --size 64
  minifast compare my_images --size 64 --schedules constant one_cycle --seeds 5
""",
    "schedule": """Examples:
  minifast schedule one_cycle --lr 5e-2 --epochs 2
  minifast schedule --list
""",
    "env": """Example:
  minifast env
""",
    "cache": """Examples:
  minifast cache
  minifast cache --clear
""",
}


class Formatter(argparse.HelpFormatter):
    """Fill the paragraphs of a text, and keep the lines of examples, which begin with two spaces."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(line if line.startswith("  ") else super(Formatter, self)._fill_text(line, width, indent)
                         for line in text.splitlines())  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from minifast import __version__

    root = argparse.ArgumentParser(
        prog="minifast", description="Train image classifiers with PyTorch and the 1cycle policy."
    )
    root.add_argument("--version", action="version", version=f"minifast {__version__}")
    subparsers = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = subparsers.add_parser(
        "train",
        formatter_class=Formatter,
        help="find a learning rate, train, and save the model and its plots",
        description="Find a learning rate, train on images with the 1cycle policy, print the metrics of each epoch, "
        "and save the model, the history and the plots.",
        epilog=f"{EXAMPLES['train']}\nWithout a network and a copy of the default data, small generated images are "
        f"used. {CODES}",
    ).add_argument
    _add_training_options(add, " (default with --csv: 0.2)")
    add("--arch", metavar="NAME",
        help="simple_cnn, or a network of torchvision or timm such as resnet18 (default: simple_cnn, or resnet18 with "
        "--pretrained)")  # fmt: skip
    add("--pretrained", action="store_true",
        help="fine-tune pretrained weights, which are downloaded once: the new head for one epoch, then all layers for "
        "--epochs; the images are normalized as the weights expect")  # fmt: skip
    add("--weights", type=Path, metavar="FILE",
        help="fine-tune the weights in this file (.pth or .safetensors), without a download")  # fmt: skip
    add("--csv", type=Path, metavar="FILE",
        help="take the labels from this CSV file: names or integers are classes, numbers with a decimal point are "
        "regression targets; DATA is the folder of the images")  # fmt: skip
    add("--fn-col", metavar="COLUMN",
        help="the CSV file's column of file names: its name, or its number from 0 (default: 0)")  # fmt: skip
    add("--label-col", metavar="COLUMN", help="the column of labels: its name, or its number from 0 (default: 1)")
    add(
        "--label-delim",
        metavar="TEXT",
        help="the text between the labels in a cell, for images with several labels (multi-label)",
    )
    add("--suffix", metavar="TEXT", help="text to add to the file names in the CSV file, such as .jpg")
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
        formatter_class=Formatter,
        help="predict the class of images with a trained model",
        description="Print the class of each image and its probability. Reading the model's file runs no code in it.",
        epilog=f"{EXAMPLES['predict']}\n{CODES}",
    ).add_argument
    add("model", type=Path, metavar="MODEL", help="a results folder of train, or a file of learn.export")
    add("images", nargs="+", metavar="IMAGES",
        help="image files, folders (searched recursively) or patterns such as 'photos/*.jpg'")  # fmt: skip
    add(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write image, class and all probabilities to this file, which is replaced",
    )
    add("--json", action="store_true", help="print JSON with the probability of every class")
    add("--device", metavar="NAME", help="the device: cpu, cuda, mps, ... (default: the GPU if there is one)")
    add = subparsers.add_parser(
        "compare",
        formatter_class=Formatter,
        help="compare learning rate schedules over several seeds",
        description="Train with several schedules over the same seeds, print a table and whether the difference "
        "between the best two is more than noise, and save a plot of learning rates and losses.",
        epilog=f"{EXAMPLES['compare']}\n{CODES}",
    ).add_argument
    _add_training_options(add)
    add("--arch", default="simple_cnn", metavar="NAME",
        help="simple_cnn (the default), or an untrained network of torchvision or timm such as resnet18")  # fmt: skip
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
        formatter_class=Formatter,
        help="plot a learning rate schedule",
        description="Plot the learning rate and momentum of a schedule over the epochs, without training.",
        epilog=f"{EXAMPLES['schedule']}\n{CODES}",
    ).add_argument
    add("name", nargs="?", metavar="NAME", help="the schedule's name, such as one_cycle")
    add("--list", action="store_true", help="list all schedules")
    add("--lr", type=_number, default=1e-2, metavar="LR", help="the maximum learning rate (default: 1e-2)")
    add("--epochs", type=_count, default=1, metavar="N", help="the number of epochs on the axis (default: 1)")
    add("--out", type=Path, default=Path("schedule.png"), metavar="FILE",
        help="the file of the plot: .png, .pdf or .svg (default: schedule.png)")  # fmt: skip
    subparsers.add_parser(
        "env",
        formatter_class=Formatter,
        help="print versions, devices and folders, for a bug report",
        description="Print the versions of Python and of the packages, the devices, and minifast's folders.",
        epilog=f"{EXAMPLES['env']}\n{CODES}",
    )
    add = subparsers.add_parser(
        "cache",
        formatter_class=Formatter,
        help="print the size of the cache of decoded images, or clear it",
        description="Print where the cache of decoded images is and how large. Downloaded data are not part of it.",
        epilog=f"{EXAMPLES['cache']}\n{CODES}",
    ).add_argument
    add("--clear", action="store_true", help="remove the cached images, without a question")
    for command in subparsers.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return root


def _add_training_options(add: Callable[..., object], valid_default: str = "") -> None:
    add("data", nargs="?", default=DEFAULT_DATA, metavar="DATA",
        help="a folder with train/CLASS/... and valid/CLASS/... (or, with --valid-pct, CLASS/...), or the name of a "
        "data set: mnist_sample (the default), mnist_tiny, mnist, cifar, ...")  # fmt: skip
    add(
        "--epochs", type=_count, default=2, metavar="N", help="the number of passes over the training data (default: 2)"
    )
    add("--bs", type=_count, default=64, metavar="N", help="the batch size (default: 64)")
    add("--wd", type=_decay, default=1e-2, metavar="X", help="weight decay (default: 0.01)")
    add(
        "--size",
        type=_count,
        metavar="N",
        help="resize and crop the images to N x N pixels (needed for images of different sizes)",
    )
    add("--valid-pct", type=_fraction, metavar="X",
        help="split the images of train and valid (or of all class folders) at random, also where there is a folder "
        f"valid, with this fraction for validation; test is left out{valid_default}")  # fmt: skip
    add("--resize", choices=("crop", "squish", "pad"), default="crop",
        help="how images of another aspect ratio get the --size: cut the center (the default), change the aspect "
        "ratio, or mirror the borders")  # fmt: skip
    add("--on-bad-image", choices=("raise", "skip"), default="raise",
        help="what to do about files that cannot be decoded: end with all their names (the default), or leave them "
        "out")  # fmt: skip
    add("--value-range", nargs=2, type=_limit, metavar=("LOW", "HIGH"),
        help="for images with more than 8 bits per channel: the values that become black and white (default: 0 65535, "
        "or for floats 0 1)")  # fmt: skip
    add("--augment", action="store_true",
        help="flip, rotate, zoom and warp the training images at random and change their lighting")  # fmt: skip
    add("--device", metavar="NAME", help="the device: cpu, cuda, mps, ... (default: the GPU if there is one)")


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


def _limit(text: str) -> float:
    return _number(text, lambda value: True, "such as 4095")


def _lr(text: str) -> float | str:
    return text if text == "auto" else _number(text, what="above 0, such as 5e-2, or auto")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the command line without the program's name. By default that of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    try:
        check_resume(options)
        if getattr(options, "nproc", 1) > 1:
            from minifast.distributed.group import current_group
            from minifast.distributed.launch import launch

            if "WORLD_SIZE" not in os.environ:
                return launch(main, arguments, nproc=options.nproc)
            current_group()  # from here on process 0 alone prints
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: write_text(
                f"minifast: {own_words(str(message), options)}", stream=sys.stderr
            )
            options.command_line = shlex.join(["minifast", *arguments])
            getattr(commands, options.command)(options)
    except KeyboardInterrupt:
        write_text("minifast: interrupted", stream=sys.stderr)
        return 130
    except Exception as error:
        if options.debug and not isinstance(error, UsageError):
            raise
        if (message := error_message(error, options)) is not None:
            write_text(f"minifast: {message}", stream=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def error_message(error: Exception, options: argparse.Namespace) -> str | None:
    """Return what this process prints about an error, and tell the other processes of it.

    None where another of several processes prints it.
    """
    shown: BaseException | None = error
    if "WORLD_SIZE" in os.environ:
        from minifast.distributed.group import report_failure

        shown = report_failure(error)
    if shown is None:
        return None
    if isinstance(shown, UsageError):
        return str(shown)
    message = own_words(shown.cli_message if isinstance(shown, MinifastError) else str(shown), options)
    return " ".join(message.split()) or type(shown).__name__


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line; an unknown one is an error of its command, with what was meant."""
    root = parser()
    subparsers = next(action for action in root._actions if isinstance(action, argparse._SubParsersAction))
    choices = ", ".join(subparsers.choices)
    name = next(iter(arguments), "")
    own = [option for action in root._actions for option in action.option_strings]
    if not name or (name.startswith("-") and not any(option.startswith(name) for option in own)):
        given = next((i for i, argument in enumerate(arguments) if argument in subparsers.choices), None)
        if given is not None:
            ordered = [arguments[given], *arguments[:given], *arguments[given + 1 :]]
            root.error(f"the command must come first: minifast {shlex.join(ordered)}")
        root.error(f"a command is missing{f' before {name}' if name else ''}; give one of {choices}")
    if not name.startswith("-") and name not in subparsers.choices:
        meant = did_you_mean(name, subparsers.choices)
        root.error(f"invalid choice: {name!r} (choose from {choices}).{meant}")
    options, unknown = root.parse_known_args(arguments)
    if unknown:
        command = subparsers.choices[options.command]
        command.error(f"unrecognized arguments: {' '.join(unknown)}.{_meant_option(unknown[0], command)}")
    return options


def _meant_option(unknown: str, command: argparse.ArgumentParser) -> str:
    """Return what was probably meant by an unknown option of a command: an option, or an argument without a name."""
    option = unknown.partition("=")[0]
    word = option.lstrip("-").replace("-", "_")
    places = {action.dest: str(action.metavar) for action in command._actions if not action.option_strings}
    options = {action.dest: action.option_strings[0] for action in command._actions if action.option_strings}
    meant = word if word in places else name_meant(word, {**options, **places}, CLI_NAMES)
    if meant in places:
        return f" Give {places[meant]} without {option}."
    return f" Did you mean {options[meant]}?" if meant in options else ""


def own_words(message: str, options: argparse.Namespace) -> str:
    """Return a message of the library with the command's options in place of the arguments of Python that they set.

    >>> own_words("`bs`, such as bs=2, and value_range=(0, 9)", argparse.Namespace(bs=1, value_range=None))
    '--bs, such as --bs 2, and --value-range 0 9'
    """

    def option(match: re.Match[str]) -> str:
        name = match["name"] or match["argument"] or match["example"]
        values = (match["values"] or match["word"] or match["number"] or "").replace(",", "")
        before = "such as " if match["example"] else ""
        return f"{before}--{name.replace('_', '-')} {values}".rstrip() if hasattr(options, name) else match[0]

    argument = r"`(?P<name>\w+)`|\b(?P<argument>\w+)=(?:\((?P<values>[^()]*)\)|'(?P<word>\w+)')"
    argument += r"|such as (?P<example>\w+)=(?P<number>[\d.]*\d)"
    return re.sub(argument, option, message)


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
