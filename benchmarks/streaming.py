"""Reading a data set that does not fit in memory, against torchvision's ImageFolder with a torch DataLoader."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks.decode import write_photographs
from benchmarks.timing import Row, compare, interleaved, seconds
from minifast import ImageDataBunch


def rows() -> list[Row]:
    """Compare one pass over 1,000 photographs with two workers each."""
    from torchvision import datasets
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        folder = write_photographs(Path(home), 1000)
        fit = v2.Compose([v2.Resize(224), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        theirs = DataLoader(datasets.ImageFolder(folder / "train", fit), 64, shuffle=True, num_workers=2)
        ours = ImageDataBunch.from_folder(folder, size=224, memory=0, num_workers=2, seed=0, device="cpu").train_dl

        def read_all(loader: object) -> float:
            return seconds(lambda: [x.shape for x, _ in loader])  # type: ignore[attr-defined]

        times = interleaved({"ours": lambda: read_all(ours), "theirs": lambda: read_all(theirs)}, rounds=7)
    return [compare("1,000 photographs from files, against ImageFolder", times, "ours", "theirs", 1.0)]
