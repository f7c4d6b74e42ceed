"""The learner of ``minifast train``: images from folders or a CSV file, and a new or a pretrained network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minifast.cli.common import UsageError, check_arch, check_model, data_options, make_data, make_model
from minifast.errors import MinifastError
from minifast.utils.text import write_text

CSV_OPTIONS = ("fn_col", "label_col", "label_delim", "suffix")
VALID_PCT = 0.2  # of the images in a CSV file
PRETRAINED = "resnet18"  # the network of --pretrained without --arch
FINE_TUNE_LR = 2e-3  # where the learning rate finder gives none
WHAT = {
    "class": "of {c} classes",
    "classes": "with any of {c} classes (multi-label)",
    "number": "with {c} regression target{s}",
}


def check_options(options: argparse.Namespace) -> None:
    """Choose the network, and raise an error, before any work, if options exclude each other or a file is missing."""
    if options.weights is not None:
        options.pretrained, options.weights = True, Path(options.weights).absolute()
        if not options.weights.is_file():
            raise UsageError(f"--weights: there is no file {options.weights}; check the path.")
    if options.arch is None:
        options.arch = PRETRAINED if options.pretrained else "simple_cnn"
    if options.pretrained and options.arch == "simple_cnn":
        raise UsageError(
            f"--pretrained: simple_cnn has no pretrained weights; give another network, such as --arch {PRETRAINED}, "
            f"or leave --pretrained out."
        )
    check_arch(options.arch)
    if options.csv is not None:
        in_data = Path(options.data) / options.csv
        options.csv = (Path(options.csv) if Path(options.csv).is_file() else in_data).absolute()
        if not options.csv.is_file():
            raise UsageError(f"--csv: there is no file {options.csv.name}, neither here nor in {options.data}.")
        return
    given = [f"--{name.replace('_', '-')}" for name in CSV_OPTIONS if getattr(options, name) is not None]
    if given:
        raise UsageError(f"{', '.join(given)} needs a file of labels; give one with --csv FILE.")


def read_data(folder: Path, options: argparse.Namespace, seed: int) -> Any:
    """Return the images of a folder with the labels of its folders, or of the file ``--csv``."""
    if options.csv is None:
        return make_data(folder, options, seed)
    from minifast.data.images.image_bunch import ImageDataBunch

    data = ImageDataBunch.from_csv(
        folder,
        label_delim=options.label_delim,
        csv_labels=options.csv,
        valid_pct=options.valid_pct or VALID_PCT,
        seed=seed,
        fn_col=as_column(options.fn_col, 0),
        label_col=as_column(options.label_col, 1),
        suffix=options.suffix or "",
        **data_options(options),
    )
    if data.classes is not None and len(data.classes) == 1:
        raise MinifastError(
            f"{options.csv.name} has images of one class only, {data.classes[0]}; it needs two or more."
        )
    return data


def as_column(given: str | None, default: int) -> int | str:
    """Return a column of ``--fn-col`` or ``--label-col``: a number counts from 0, anything else is a name."""
    return default if given is None else int(given) if given.isdecimal() else given


def make_learner(data: Any, options: argparse.Namespace, out: Path) -> Any:
    """Return a learner for the labels of the data, tried on the first batch."""
    from minifast.learner.learner import Learner
    from minifast.metrics.functions import accuracy, accuracy_thresh
    from minifast.metrics.regression import rmse

    metric = {"class": accuracy, "classes": accuracy_thresh, "number": rmse}[kind_of(data)]
    settings: dict[str, Any] = {"metrics": [metric], "wd": options.wd, "path": out, "model_dir": "."}
    if not options.pretrained:
        learn = Learner(data, make_model(options.arch, data.c or 0), **settings)
    else:
        from minifast.vision.transfer import vision_learner

        learn = vision_learner(data, options.arch, pretrained=options.weights or True, **settings)
    if options.arch != "simple_cnn":
        check_model(learn, options.arch)
    return learn


def kind_of(data: Any) -> str:
    """Return the kind of the targets: class, classes (multi-label) or number (regression)."""
    return "class" if data.labels is None else str(data.labels.kind)


def describe(data: Any) -> str:
    """Return how many images there are, and what the targets are."""
    what = WHAT[kind_of(data)].format(c=data.c, s="" if data.c == 1 else "s")
    why = ""
    if data.labels is not None:
        why = f" The labels are {data.labels.why}."
        if data.labels.why == "integers":
            why += " Integers are classes; with a decimal point they would be regression targets."
    return f"{len(data.train_ds)} training and {len(data.valid_ds)} validation images {what}.{why}"


def fit(learn: Any, options: argparse.Namespace, lr: float, checkpoint: Any) -> None:
    """Train with the 1cycle policy; of a pretrained network first the new head alone."""
    if not options.pretrained:
        learn.fit_one_cycle(options.epochs, lr, checkpoint=checkpoint)
        return
    write_text(
        f"First one epoch for the new head alone, then {options.epochs} for all layers, with learning rates up to "
        f"{lr / 2:.2g} for the head and {lr / 200:.2g} for the first layers."
    )
    learn.fine_tune(options.epochs, lr, checkpoint=checkpoint)


def fits_of(learn: Any) -> list[tuple[str, Any]]:
    """Return the records of the training, without those of the learning rate finder, each with its name."""
    fits = [run for run in learn.history if run.finder_result is None and run.nb_batches and not run.silent]
    return [("", fits[0])] if len(fits) == 1 else list(zip(("new head", "all layers"), fits, strict=False))


def epoch_rows(learn: Any) -> list[list[Any]]:
    """Return the names of the columns and a row for each epoch; the epochs of several fits are counted on."""
    fits = [run for _, run in fits_of(learn)]
    rows = [row for run in fits for row in run.rows]
    return [fits[-1].names, *([number, *row[1:]] for number, row in enumerate(rows))]
