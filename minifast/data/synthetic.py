"""Generated sample data in place of MNIST_SAMPLE, for machines without a network: warped 3s and 7s."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minifast.data.download import move_into_place, staging
from minifast.errors import DataError
from minifast.utils.checks import check_count
from minifast.utils.folders import home
from minifast.utils.public import public

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


SIDE = 28  # height and width of an image, in pixels


GLYPH = 64  # height and width of a rendered digit before it is warped, in pixels


# Text fonts only: matplotlib's other fonts (STIXSiz*, cmex10, LastResort, ...) hold symbols or boxes.
FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10")


@public
def generate_sample(dest: Path | str | None = None, n_train: int = 6000, n_valid: int = 1000, seed: int = 0) -> Path:
    """Generate images of 3s and 7s in the layout of MNIST_SAMPLE, and return their folder.

    The images are 28x28 8-bit grayscale PNG files, white on black, equally many of each digit::

        train/3  train/7  valid/3  valid/7  labels.csv (name,label: 0 for a 3, 1 for a 7)

    Each image shows a digit of one of matplotlib's fonts, rotated, sheared, bent and moved, with thick or thin strokes,
    and sometimes partly hidden. Equal arguments give equal images. Global random generators are neither used nor
    changed.

    Args:
        dest: folder to create; by default ``home()/data/generated_sample``. If it holds a sample already, it is
            returned unchanged, whatever its size and seed.
        n_train: number of training images, at least 2. If it is odd, there is one 3 more.
        n_valid: number of validation images, at least 2.
        seed: seed of the random numbers, at least 0.

    Returns:
        The folder. It appears when it is complete.

    Raises:
        DataError: if ``dest`` holds something else or cannot be written.

    >>> path = generate_sample("sample", n_train=600, n_valid=100)  # doctest: +SKIP
    """
    check_count("n_train", n_train, least=2)
    check_count("n_valid", n_valid, least=2)
    check_count("seed", seed, least=0)
    target = Path(dest).expanduser().absolute() if dest is not None else home() / "data" / "generated_sample"
    if (target / "labels.csv").is_file():
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} exists and is not a generated sample. Give an empty or a new folder.")

    import numpy as np

    rng, glyphs, rows = np.random.default_rng(seed), _glyphs(), ["name,label"]
    try:
        with staging(target) as folder:
            for split, n in (("train", n_train), ("valid", n_valid)):
                rows += _write(folder / "new", split, _images(glyphs, n, rng))
            (folder / "new" / "labels.csv").write_text("\n".join([*rows, ""]))
            move_into_place(folder / "new", target)
    except OSError as error:
        raise DataError(
            f"{target} cannot be written ({error.strerror or error}). Free disk space or change its permissions, or "
            "set MINIFAST_HOME (or `dest`) to a folder that can be written."
        ) from error
    return target


def _write(folder: Path, split: str, images: Iterator[tuple[int, Tensor]]) -> list[str]:
    """Write the images of a split, and return their rows of ``labels.csv``, the 3s first."""
    from PIL import Image

    rows: tuple[list[str], list[str]] = [], []
    for digit in "37":
        (folder / split / digit).mkdir(parents=True)
    for label, image in images:
        name = f"{split}/{'37'[label]}/{len(rows[label])}.png"
        Image.fromarray(image.numpy()).save(folder / name)
        rows[label].append(f"{name},{label}")
    return rows[0] + rows[1]


def _glyphs() -> Tensor:
    """Return a blurred, centered 3 and 7 in each font: ``(fonts, 2, GLYPH, GLYPH)`` in [0, 1]."""
    import matplotlib as mpl
    import numpy as np
    import torch
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    folder, squares = Path(mpl.get_data_path()) / "fonts" / "ttf", []
    for path in sorted(path for pattern in FONTS for path in folder.glob(f"{pattern}.ttf")):
        if "Display" in path.stem:  # a few large symbols
            continue
        for digit in "37":
            _, top, _, bottom = ImageFont.truetype(str(path), GLYPH).getbbox(digit)
            font = ImageFont.truetype(str(path), round(0.7 * GLYPH * GLYPH / (bottom - top)))  # equal heights
            left, top, right, bottom = font.getbbox(digit)
            square = Image.new("L", (GLYPH, GLYPH))
            middle = (GLYPH - left - right) / 2, (GLYPH - top - bottom) / 2
            ImageDraw.Draw(square).text(middle, digit, fill=255, font=font)
            squares.append(np.asarray(square.filter(ImageFilter.GaussianBlur(2.5)), dtype=np.float32) / 255)
    if not squares:
        raise DataError(
            f"{folder} has none of the fonts {', '.join(FONTS)}. Reinstall matplotlib, which includes them."
        )
    return torch.from_numpy(np.stack(squares)).view(-1, 2, GLYPH, GLYPH)


def _images(glyphs: Tensor, n: int, rng: np.random.Generator) -> Iterator[tuple[int, Tensor]]:
    """Yield ``n`` pairs of a label and an image uint8 ``(SIDE, SIDE)``, a 3 and a 7 in turn, made 500 at a time."""
    import numpy as np

    for start in range(0, n, 500):
        labels = np.arange(start, min(n, start + 500)) % 2
        yield from zip(labels.tolist(), _warped(glyphs, labels, rng), strict=True)


def _warped(glyphs: Tensor, labels: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """Return one warped image per label: uint8 ``(labels, SIDE, SIDE)``.

    Lengths are in the units of ``grid_sample``, where an image is 2 wide. The ranges are chosen so that two epochs of
    the 1cycle policy at 5e-2 take a CNN of three convolutions to about 99 % accuracy, and a linear model to about 95 %.
    """
    import numpy as np
    import torch
    from torch.nn import functional as F

    n = len(labels)

    def spread(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (n, *shape)).astype(np.float32))

    turn, lean, right, down = (spread(-a, a) for a in (0.1, 0.2, 0.3, 0.3))
    wide, high, cos, sin = spread(-0.1, 0.1).exp(), spread(-0.1, 0.1).exp(), turn.cos(), turn.sin()
    # The affine map is rotation times shear times scaling, plus a shift.
    rows = [cos * wide, (cos * lean - sin) * high, right, sin * wide, (sin * lean + cos) * high, down]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), [n, 1, 2 * SIDE, 2 * SIDE], align_corners=False)
    bend = torch.from_numpy(rng.normal(0, 0.05, (n, 2, 5, 5)).astype(np.float32))
    grid = grid + F.interpolate(bend, size=grid.shape[1:3], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)

    fonts = rng.integers(len(glyphs), size=n)
    ink = F.grid_sample(glyphs[fonts, labels].unsqueeze(1), grid, align_corners=False)
    # A low threshold on the blurred stroke gives a thick stroke, a high one a thin stroke.
    threshold, sharpness = spread(0.25, 0.4, 1, 1, 1), spread(15, 30, 1, 1, 1)
    empty = torch.sigmoid(-threshold * sharpness)
    ink = F.avg_pool2d(torch.sigmoid((ink - threshold) * sharpness) - empty, 2).squeeze(1)

    across = torch.from_numpy(np.linspace(-1, 1, SIDE, dtype=np.float32))
    x, y, radius = spread(-0.6, 0.6, 1, 1), spread(-0.6, 0.6, 1, 1), spread(0.1, 0.25, 1, 1)
    distance = torch.hypot(across - x, across.unsqueeze(1) - y)
    hidden = (spread(0, 1, 1, 1) < 0.2) * torch.sigmoid(20 * (radius - distance))
    ink = (1.3 * ink * (1 - hidden)).clamp(0, 1) * spread(0.9, 1, 1, 1) * spread(0.8, 1, SIDE, SIDE)
    return (255 * ink).round().to(torch.uint8)
