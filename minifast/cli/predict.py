"""The command ``predict``."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minifast.cli.common import UsageError, check_device
from minifast.errors import DataError, MinifastError
from minifast.utils.checks import shortlist
from minifast.utils.text import can_write, is_terminal, text_table, write_text


def predict(options: argparse.Namespace) -> None:
    """Print the class of images and its probability, or write them to a CSV file."""
    model, images = find_export(options.model), find_images(options.images)
    if options.csv is not None:
        check_csv(options.csv)

    from minifast.data.images.decoding import verify_images
    from minifast.learner.loading import load_learner

    device = check_device(options.device)
    learn = load_learner(model, test=images, device=device)
    if learn.data.classes is None:
        raise MinifastError(f"The model in {model} has no classes; predict with load_learner in Python.")
    classes = [str(name) for name in learn.data.classes]
    try:
        predictions = predict_images(learn, quiet=options.json)
    except DataError:
        bad = verify_images(images)
        if not bad:
            raise
        if len(bad) == len(images):
            raise UsageError(f"{shortlist(bad, 10)} cannot be decoded; give other images.") from None
        left_out = f"Left out {len(bad)} of {len(images)} images, which cannot be decoded: {shortlist(bad, 10)}."
        write_text(left_out, stream=sys.stderr)
        images = [image for image in images if image not in bad]
        predictions = predict_images(load_learner(model, test=images, device=device), quiet=options.json)
    names = [str(path) for path in images]
    best = [(names[i], classes[int(row.argmax())], float(row.max())) for i, row in enumerate(predictions)]
    if options.csv is not None:
        write_csv(options.csv, best, classes, predictions.tolist())
        counts = ", ".join(f"{name} {n} times" for name, n in Counter(name for _, name, _ in best).most_common())
        write_text(f"Wrote the predictions of {len(best)} images to {options.csv}: {counts}.", stream=sys.stderr)
    if options.json:
        records = [
            {
                "image": name,
                "class": category,
                "probability": probability,
                "probabilities": dict(zip(classes, row, strict=True)),
            }
            for (name, category, probability), row in zip(best, predictions.tolist(), strict=True)
        ]
        text = json.dumps(records, indent=2, ensure_ascii=False)
        write_text(text if can_write(text) else json.dumps(records, indent=2))  # an escape of JSON, not of Python
    elif options.csv is None and len(names) == 1 and Path(options.images[0]).is_file():
        write_text(f"{best[0][1]}  {best[0][2]:.4f}")
    elif options.csv is None:
        rows = [(name, category, f"{probability:.4f}") for name, category, probability in best]
        write_text(text_table([("image", "class", "probability"), *rows], right=2))


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
    """Return the images that files, folders and patterns name: in the order given, those of a folder by name."""
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
    return images


def predict_images(learn: Any, quiet: bool) -> Any:
    """Return the predictions of the test set, ``(images, classes)``, with a bar on a terminal for several batches."""
    import torch

    from minifast.training.progress import make_bar

    loader = learn.data.test_dl
    bar = make_bar(silent=quiet or len(loader) < 2 or not is_terminal(sys.stdout))
    bar.what = "Predictions"
    bar.start(1)
    try:
        return torch.cat([learn.pred_batch(batch=batch) for batch in bar.track(loader)])
    finally:
        bar.close()


def check_csv(out: Path) -> None:
    """Raise an error, before any work, if the file cannot be written."""
    from minifast.utils.files import check_writable

    try:
        check_writable(out)
    except OSError as error:
        raise UsageError(f"--csv {error.strerror}.") from error


def write_csv(
    out: Path, best: Sequence[tuple[str, str, float]], classes: Sequence[str], probabilities: Sequence[Sequence[float]]
) -> None:
    """Write a row per image: its name, class, the probability of it, and those of all classes."""
    from minifast.utils.files import write_rows

    header = ["image", "class", "probability", *(f"probability of {name}" for name in classes)]
    write_rows([header, *([*first, *row] for first, row in zip(best, probabilities, strict=True))], out)
