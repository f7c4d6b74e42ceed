"""``ImageDataBunch.from_folder``, the first time and from the cache, against Pillow decoding one file after another."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks.timing import Row, compare, cpu_seconds, interleaved, seconds
from minifast import ImageDataBunch, URLs, untar_data

Clock = Callable[[Callable[[], object]], float]  # seconds or cpu_seconds
PHOTOGRAPHS = 2000
SIZE = 500, 375  # of a photograph, width and height
FROM_A_CAMERA = 4000, 3000
SHOTS = 20  # photographs of that size
GRAIN = 12  # largest change of a pixel by noise; then a file of 4000 × 3000 pixels has 3 MB, without noise 0.6 MB


def write_photographs(folder: Path, n: int = PHOTOGRAPHS, size: tuple[int, int] = SIZE, grain: int = GRAIN) -> Path:
    """Write JPEG files that decode as slowly as photographs: smooth areas with noise."""
    rng = np.random.default_rng(0)
    for i in range(n):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (pixels + rng.integers(-grain, grain + 1, pixels.shape)).clip(0, 255).astype(np.uint8)
        file = folder / ("valid" if i % 10 == 0 else "train") / ("a", "b")[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(file, quality=90)
    return folder


def decode_with_pillow(folder: Path, size: int | None) -> torch.Tensor:
    """Decode all files under ``folder`` with Pillow, one after another."""
    arrays = []
    for file in sorted(folder.glob("*/*/*.*")):
        image = Image.open(file).convert("RGB" if size else "L")
        arrays.append(np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR) if size else image))
    return torch.from_numpy(np.stack(arrays))


def load(folder: Path, size: int | None, fresh: bool, clock: Clock = seconds) -> float:
    """Return the seconds that ``from_folder`` takes, with an empty or a filled cache."""
    if fresh:
        shutil.rmtree(Path(os.environ["MINIFAST_HOME"]) / "cache", ignore_errors=True)
    return clock(lambda: ImageDataBunch.from_folder(folder, size=size, seed=0, device="cpu"))


def rows() -> list[Row]:
    """Compare on the small files of MNIST_SAMPLE and on photographs, with one thread per core."""
    sample = untar_data(URLs.MNIST_SAMPLE)
    results: list[Row] = []
    old_home = os.environ.get("MINIFAST_HOME")
    with tempfile.TemporaryDirectory() as home:
        os.environ["MINIFAST_HOME"] = home
        try:
            photographs = write_photographs(Path(home) / "photographs")
            grainy, smooth = (
                write_photographs(Path(home) / f"grain{grain}", SHOTS, FROM_A_CAMERA, grain) for grain in (GRAIN, 0)
            )
            camera = f"{SHOTS} photographs of 4000 × 3000 to 224 × 224"
            kinds: tuple[tuple[str, Path, int | None, float | None, Clock], ...] = (
                ("MNIST_SAMPLE's 14,434 files", sample, None, 1.0, seconds),
                (f"{PHOTOGRAPHS:,} photographs to 224 × 224", photographs, 224, 0.5, seconds),
                (f"{PHOTOGRAPHS:,} photographs to 224 × 224, CPU time", photographs, 224, None, cpu_seconds),
                (f"{camera}, 0.6 MB each, CPU time", smooth, 224, 0.25, cpu_seconds),
                (f"{camera}, 3 MB each, CPU time", grainy, 224, None, cpu_seconds),
            )
            for name, folder, size, bound, clock in kinds:
                runs = {
                    "pillow": lambda folder=folder, size=size, clock=clock: clock(
                        lambda: decode_with_pillow(folder, size)
                    ),
                    "first": lambda folder=folder, size=size, clock=clock: load(folder, size, True, clock),
                    "cached": lambda folder=folder, size=size, clock=clock: load(folder, size, False, clock),
                }
                times = interleaved(runs, rounds=7)
                results.append(compare(f"{name}, first time, against Pillow", times, "first", "pillow", bound))
                if clock is seconds:
                    results.append(compare(f"{name}, from the cache, against Pillow", times, "cached", "pillow", None))
        finally:
            if old_home is None:
                del os.environ["MINIFAST_HOME"]
            else:
                os.environ["MINIFAST_HOME"] = old_home
    return results
