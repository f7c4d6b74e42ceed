"""The command ``predict``."""

from __future__ import annotations

import argparse
import glob
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minifast.cli.common import UsageError, check_device
from minifast.errors import DataError, MinifastError
from minifast.utils.checks import counted, shortlist
from minifast.utils.text import can_write, is_terminal, real_name, text_table, write_result, write_text

MOST_COUNTS = 10  # classes in the line after --csv


def predict(options: argparse.Namespace) -> None:
    """Print the class of images and its probability, or write them to a CSV file."""
    check_order(options.model, options.images)
    model, images = find_export(options.model), find_images(options.images)
    if options.csv is not None:
        check_csv(options.csv)

    from minifast.data.images.decoding import verify_images
    from minifast.learner.loading import load_learner

    device = check_device(options.device)
    learn = load_learner(model, test=images, device=device)
    try:
        outputs = predict_images(learn, options)
    except DataError:
        bad = verify_images(images)
        if not bad:
            raise
        if len(bad) == len(images):
            raise UsageError(f"{shortlist(bad, 10)} cannot be decoded; give other images.") from None
        left_out = f"Left out {len(bad)} of {len(images)} images, which cannot be decoded: {shortlist(bad, 10)}."
        write_text(left_out, stream=sys.stderr)
        images = [image for image in images if image not in bad]
        outputs = predict_images(load_learner(model, test=images, device=device), options)
    found = [as_prediction(learn, str(image), output) for image, output in zip(images, outputs, strict=True)]
    if options.csv is not None:
        if not options.csv.parent.is_dir():
            write_text(f"The folder {options.csv.parent} does not exist; it is made.", stream=sys.stderr)
        write_csv(options.csv, found, label_delim_of(model))
        counts = Counter(name for prediction in found for name in prediction.names or ["none"])
        summary = ", ".join(f"{name} {counted(n, 'time')}" for name, n in counts.most_common(MOST_COUNTS))
        text = f"Wrote the predictions of {counted(len(found), 'image')} to {options.csv}"
        text += "." if found[0].kind == "prediction" else f": {summary}."
        write_text(text, stream=sys.stderr)
    if options.json:
        records = [prediction.as_json() for prediction in found]
        text = json.dumps(records, indent=2, ensure_ascii=False)
        write_result(text if can_write(text) else json.dumps(records, indent=2))  # an escape of JSON, not of Python
    elif options.csv is None and len(found) == len(options.images) == 1 and Path(options.images[0]).is_file():
        write_result("  ".join(found[0].cells()))
    elif options.csv is None:
        header = ["image", found[0].kind, *(["probability"] if found[0].kind != "prediction" else [])]
        write_result(text_table([header, *([prediction.image, *prediction.cells()] for prediction in found)], right=2))


class Prediction(NamedTuple):
    """The prediction of one image.

    Attributes:
        image: the name of its file.
        kind: ``"class"``, ``"classes"`` (multi-label) or ``"prediction"`` (regression).
        names: the predicted classes.
        values: the probability of each predicted class, or the numbers of a regression.
        probabilities: those of all classes.
    """

    image: str
    kind: str
    names: list[str]
    values: list[float]
    probabilities: dict[str, float]

    def cells(self) -> list[str]:
        """Return the prediction as it is printed: classes and their probabilities, or numbers."""
        values = ", ".join(f"{value:.4g}" if self.kind == "prediction" else f"{value:.4f}" for value in self.values)
        return [values] if self.kind == "prediction" else [", ".join(self.names) or "none", values]

    def as_json(self) -> dict[str, Any]:
        """Return the prediction as an object of JSON, with the name of the file as in a CSV file."""
        image = real_name(self.image)
        if self.kind == "prediction":
            return {"image": image, "prediction": self.values if len(self.values) > 1 else self.values[0]}
        if self.kind == "classes":
            return {"image": image, "classes": self.names, "probabilities": self.probabilities}
        chosen = {"class": self.names[0], "probability": self.values[0]}
        return {"image": image, **chosen, "probabilities": self.probabilities}


def as_prediction(learn: Any, image: str, output: Any) -> Prediction:
    """Return the prediction of one image, as ``learn.predict`` chooses it."""
    from minifast.learner.predicting import decide

    chosen, index, output = decide(learn, output)
    if learn.data.classes is None:
        if index is not output:
            raise MinifastError("The model has classes without names; predict with load_learner in Python.")
        return Prediction(image, "prediction", [], output.flatten().tolist(), {})
    values = output.flatten().tolist()
    if len(values) == 1 < len(learn.data.classes):  # of the second of two classes, after a sigmoid
        if not 0 <= values[0] <= 1:
            raise MinifastError("The model gives no probabilities; predict with load_learner in Python.")
        values = [1 - values[0], values[0]]
    probabilities = dict(zip(map(str, learn.data.classes), values, strict=True))
    names = list(map(str, chosen)) if isinstance(chosen, list) else [str(chosen)]
    kind = "classes" if isinstance(chosen, list) else "class"
    return Prediction(image, kind, names, [probabilities[name] for name in names], probabilities)


def check_order(model: Path, images: Sequence[str]) -> None:
    """Raise an error if an image comes first, or a model after the folder of the images."""
    from minifast.data.images.listing import SUFFIXES

    models = [name for name in images if Path(name).suffix == ".pkl" or (Path(name) / "export.pkl").is_file()]
    is_image = model.suffix.lower() in SUFFIXES and model.is_file()
    if is_image or (models and model.is_dir() and not (model / "export.pkl").is_file()):
        command = shlex.join(["minifast", "predict", *(models[:1] or ["results"]), str(model)])
        raise UsageError(f"{model} is no model; the model comes first, then the images: {command}")


def find_export(path: Path) -> Path:
    """Return the model's file: ``path`` itself, or the one in a results folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"There is no file or folder {path}; check the path.")
    if (path / "export.pkl").is_file():
        return path / "export.pkl"
    others = sorted(file.name for file in path.glob("*.pkl"))
    advice = f"give the file, such as {path / others[0]}" if others else "give the results folder of minifast train"
    raise UsageError(f"The folder {path} has no export.pkl; {advice}.")


def find_images(arguments: Sequence[str]) -> list[Path]:
    """Return the images that files, folders and patterns name, each once: in this order, those of a folder by name."""
    from minifast.data.images.listing import get_image_files

    images: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        is_pattern = not path.exists() and glob.has_magic(argument)
        # Path.glob takes no absolute patterns.
        names = sorted(glob.glob(argument, recursive=True)) if is_pattern else [argument]  # noqa: PTH207
        matches = list(map(Path, names))
        if not matches:
            raise UsageError(f"No file matches {argument}; check the pattern.")
        for match in matches:
            if not match.exists():
                raise UsageError(f"There is no file {match}; check the path.")
            found = get_image_files(match, recurse=True) if match.is_dir() else [match]
            if not found and not is_pattern:
                raise UsageError(f"The folder {match} has no images; give another one.")
            images += found
    if not images:
        raise UsageError(f"The folders that match {', '.join(arguments)} have no images; check the pattern.")
    unique: dict[str, Path] = {}
    for image in images:
        unique.setdefault(os.path.abspath(image), image)  # noqa: PTH100 - ends the ".." too
    return list(unique.values())


def predict_images(learn: Any, options: argparse.Namespace) -> Any:
    """Return the predictions of the test set, one row per image, and show the progress of several batches.

    A terminal shows a bar. Where stdout gets nothing else, as with ``--csv``, a line follows every 30 seconds.
    """
    import torch

    from minifast.training.progress import make_bar

    loader = learn.data.test_dl
    has_place = is_terminal(sys.stdout) or options.csv is not None
    bar = make_bar(silent=options.json or len(loader) < 2 or not has_place)
    bar.what = "Predictions"
    bar.start(1)
    try:
        return torch.cat([learn.pred_batch(batch=batch) for batch in bar.track(loader)])
    finally:
        bar.close()


def check_csv(out: Path) -> None:
    """Raise an error, before any work, if the file cannot be written."""
    from minifast.utils.files import check_writable

    if not out.absolute().parent.parent.is_dir():  # one folder is made, several are a mistake in the path
        raise UsageError(f"--csv {out}: there is no folder {out.parent.parent}; check the path, or make the folder.")
    try:
        check_writable(out)
    except OSError as error:
        raise UsageError(f"--csv {error.strerror}.") from error


def label_delim_of(model: Path) -> str:
    """Return the separator of several labels in a cell of the table that a model was trained on.

    It is in the ``options.json`` beside the model; without that file, or for other labels, it is a comma and a space.
    """
    try:
        saved = json.loads((model.parent / "options.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ", "
    delim = saved.get("label_delim") if isinstance(saved, dict) else None
    return delim if isinstance(delim, str) and delim else ", "


def write_csv(out: Path, found: Sequence[Prediction], label_delim: str) -> None:
    """Write a row per image: its name, class, the probability of it, and those of all classes; or its numbers.

    Several classes of an image are in one cell, with ``label_delim`` between them, so that ``minifast train --csv``
    reads the file as it read the labels.
    """
    from minifast.utils.files import write_rows

    first = found[0]
    if first.kind == "prediction":
        numbers = [f"prediction {i}" for i in range(len(first.values))] if len(first.values) > 1 else ["prediction"]
        write_rows([["image", *numbers], *([each.image, *each.values] for each in found)], out)
        return
    header = ["image", first.kind, *(["probability"] if first.kind == "class" else [])]
    header += [f"probability of {name}" for name in first.probabilities]
    rows = []
    for each in found:
        chosen = [each.names[0], each.values[0]] if each.kind == "class" else [label_delim.join(each.names)]
        rows.append([each.image, *chosen, *each.probabilities.values()])
    write_rows([header, *rows], out)
