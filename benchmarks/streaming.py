"""Reading a data set that does not fit in memory, against torchvision's ImageFolder with a torch DataLoader."""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from benchmarks.decode import write_photographs
from benchmarks.timing import Row, compare, interleaved, seconds
from minifast import ImageDataBunch

WORKERS = 2


def decode(files: list[Path]) -> int:
    """Decode and resize photographs with Pillow, and keep none."""
    for file in files:
        ImageOps.fit(Image.open(file).convert("RGB"), (224, 224), Image.Resampling.BILINEAR)
    return len(files)


def rows() -> list[Row]:
    """Compare one pass over photographs with two workers each, also with workers that make no floats or batches."""
    from torchvision import datasets
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        folder = write_photographs(Path(home), 1000)
        fit = v2.Compose([v2.Resize(224), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        theirs = DataLoader(datasets.ImageFolder(folder / "train", fit), 64, shuffle=True, num_workers=WORKERS)
        ours = ImageDataBunch.from_folder(
            folder, size=224, memory=0, num_workers=WORKERS, seed=0, device="cpu"
        ).train_dl
        # Without floats: the least that worker processes can do.
        plain = DataLoader(ours.dl.dataset, 64, shuffle=True, num_workers=WORKERS, persistent_workers=True)

        def read_all(loader: object) -> float:
            return seconds(lambda: [x.shape for x, _ in loader])  # type: ignore[attr-defined]

        files = sorted((folder / "train").glob("*/*.jpg"))
        parts = [files[i::WORKERS] for i in range(WORKERS)]
        with ProcessPoolExecutor(WORKERS) as pool:
            runs = {"ours": lambda: read_all(ours), "theirs": lambda: read_all(theirs)}
            runs["bytes"] = lambda: read_all(plain)
            runs["least"] = lambda: seconds(lambda: list(pool.map(decode, parts)))
            times = interleaved(runs, rounds=7)
    return [
        compare(f"{len(files)} photographs from files, against ImageFolder", times, "ours", "theirs", 0.6),
        compare("the same as bytes, in a plain DataLoader", times, "bytes", "theirs", None),
        compare("the same decoded and resized only, by Pillow", times, "least", "theirs", None),
    ]
