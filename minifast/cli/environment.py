"""The commands ``env`` and ``cache``: what is installed here, and what minifast stores here."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from minifast.errors import MinifastError
from minifast.utils.folders import cache_files, home, size_of, size_text
from minifast.utils.text import text_table, write_result, write_text

REQUIRED = ("torch", "torchvision", "numpy", "pillow", "matplotlib", "fastprogress", "pooch", "requests", "filelock")
OPTIONAL = ("onnx", "onnxscript", "onnxruntime", "tensorboard", "torchmetrics", "pandas", "ipykernel")


def env(_: argparse.Namespace) -> None:
    """Print the versions, devices and folders that a bug report needs; works if torch is missing or broken."""
    import platform

    from minifast import __file__, __version__

    rows = [("minifast", f"{__version__} in {Path(str(__file__)).parent}")]
    rows += [("Python", f"{platform.python_version()} in {sys.prefix}"), ("platform", platform.platform())]
    rows += [(name, version(name)) for name in (*REQUIRED, *OPTIONAL)]
    rows += [*hardware(), *folders()]
    write_result(text_table(rows))


def version(package: str) -> str:
    """Return the version of an installed package."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def hardware() -> list[tuple[str, str]]:
    """Return the devices and threads that torch can use here."""
    try:
        import torch
    except Exception as error:  # a damaged installation raises errors of many types
        return [("devices", f"torch cannot be imported: {' '.join(str(error).split())}")]
    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    built = f", built for CUDA {torch.version.cuda}" if torch.version.cuda else ""
    threads = f"{torch.get_num_threads()} of torch, {os.cpu_count()} cores"
    return [("devices", f"{', '.join(['cpu', *devices])}{built}"), ("threads", threads)]


def folders() -> list[tuple[str, str]]:
    """Return minifast's folders with their sizes."""
    try:
        paths = [home() / "data", home() / "cache"]
    except RuntimeError as error:  # the user has no home folder
        return [("folders", str(error))]
    sizes = [size_text(size_of(path)) if path.is_dir() else "does not exist" for path in paths]
    return [(path.name, f"{path} ({size})") for path, size in zip(paths, sizes, strict=True)]


def cache(options: argparse.Namespace) -> None:
    """Print the size of the cache of decoded images, or remove its files."""
    try:
        folder = home() / "cache"
        files = cache_files()
    except RuntimeError as error:
        raise MinifastError(f"There is no cache: {error}") from error
    size = sum(map(size_of, files))
    if not options.clear:
        write_result(f"{folder} has {count(len(files))} of decoded images, {size_text(size)}.")
        if files:
            write_text("minifast cache --clear removes them; the next training decodes the images again.")
        return
    left = []
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            left.append(error)
    size -= sum(map(size_of, files))  # of those that are still there
    write_text(f"Removed {count(len(files) - len(left))} of decoded images from {folder}, {size_text(size)}.")
    if left:
        raise MinifastError(f"{count(len(left))} could not be removed: {left[0]}. End what uses them, and try again.")


def count(n: int) -> str:
    """Return a number of files as text."""
    return f"{n} file{'' if n == 1 else 's'}"
