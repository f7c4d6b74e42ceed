"""``minifast train`` as a newcomer calls it, on generated folders of colored shapes: does it always end trained?"""

from __future__ import annotations

import contextlib
import io
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from minifast import cli
from minifast.cli import train
from minifast.cli.learning_rate import choose_lr

N_FOLDERS = 20
SEEDS = 3
N_CLASSES = (2, 3, 4, 5, 6, 8, 10)
SIDES = (28, 32, 48, 64, 96, 128)
RESNET_SIDE = 64  # resnet18 trains on images of at most this side
EPOCHS = 30
BATCH = 16


def draw(kind: int, side: int, rng: random.Random) -> Image.Image:
    """Return an image of a shape at a random place: a polygon of 3, 4, ... corners, in one of two colors."""
    background = tuple(rng.randrange(90) for _ in range(3))
    image = Image.new("RGB", (side, side), background)
    radius = side * rng.uniform(0.2, 0.35)
    x, y = (rng.uniform(radius, side - radius) for _ in range(2))
    color = (230, 120, 90) if kind % 2 else (90, 160, 230)
    fill = tuple(channel + rng.randrange(-25, 25) for channel in color)
    ImageDraw.Draw(image).regular_polygon((x, y, radius), 3 + kind // 2, rng.uniform(0, 360), fill=fill)
    return image


def make_folder(folder: Path, n_classes: int, side: int, seed: int) -> None:
    """Write 40 training and 15 validation images of each class."""
    rng = random.Random(seed)
    for part, n in (("train", 40), ("valid", 15)):
        for kind in range(n_classes):
            place = folder / part / f"class{kind}"
            place.mkdir(parents=True)
            for i in range(n):
                draw(kind, side, rng).save(place / f"{i}.png")


def run(folder: Path, out: Path, arch: str, seed: int) -> dict[str, Any]:
    """Train once and return the seconds of the finder, of all, the accuracy and what was printed."""
    spent: list[float] = []

    def timed(*arguments: Any) -> Any:
        begin = time.perf_counter()
        chosen = choose_lr(*arguments)
        spent.append(time.perf_counter() - begin)
        return chosen

    train.choose_lr = timed  # type: ignore[assignment]
    text = io.StringIO()
    begin = time.perf_counter()
    arguments = ["train", str(folder), "--epochs", str(EPOCHS), "--bs", str(BATCH), "--arch", arch]
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = cli.main([*arguments, "--seed", str(seed), "--out", str(out), "--device", "cpu"])
    seconds = time.perf_counter() - begin
    accuracy = float((out / "history.csv").read_text().splitlines()[-1].split(",")[3]) if not code else 0.0
    chosen = r"learning rate of (\S+), (?:because )?(the suggestion|a careful choice|the default)"
    source = re.search(chosen, text.getvalue())
    return {
        "code": code, "finder": sum(spent), "seconds": seconds, "accuracy": accuracy,
        "source": source[2] if source else "none", "lr": source[1] if source else "none",
    }  # fmt: skip


def report(n_folders: int = N_FOLDERS) -> str:
    """Return a table with one row per folder and a summary."""
    torch.set_num_threads(1)
    lines = [
        "| folder | model | accuracy of each seed | chance | learning rates | finder's share |",
        "|---|---|---|---|---|---|",
    ]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(n_folders):
            rng = random.Random(number)
            n_classes, side = rng.choice(N_CLASSES), rng.choice(SIDES)
            arch = "resnet18" if number % 4 == 3 and side <= RESNET_SIDE else "simple_cnn"
            folder = Path(temporary) / f"data{number}"
            make_folder(folder, n_classes, side, number)
            runs = [run(folder, Path(temporary) / f"out{number}-{seed}", arch, seed) for seed in range(SEEDS)]
            results += [{**result, "chance": 1 / n_classes} for result in runs]
            share = sum(result["finder"] for result in runs) / sum(result["seconds"] for result in runs)
            scores = ", ".join(f"{result['accuracy']:.2f}" for result in runs)
            rates = ", ".join(result["lr"] for result in runs)
            lines.append(
                f"| {n_classes} classes, {side} px | {arch} | {scores} | {1 / n_classes:.2f} | {rates} | {share:.0%} |"
            )
    trained = sum(not result["code"] for result in results)
    above = sum(result["accuracy"] > 1.5 * result["chance"] for result in results)
    sources = {
        name: sum(result["source"] == name for result in results)
        for name in ("the suggestion", "a careful choice", "the default")
    }
    total = sum(result["finder"] for result in results) / sum(result["seconds"] for result in results)
    counts = ", ".join(f"{name} {n}" for name, n in sources.items())
    return "\n".join(
        [
            *lines,
            "",
            f"{trained} of {len(results)} trainings ended with a model; the accuracy of {above} is above 1.5 times "
            f"chance. Learning rates: {counts}. The finder took {total:.0%} of the time. {EPOCHS} epochs, batches of "
            f"{BATCH}, 40 training images of each class.",
        ]
    )
