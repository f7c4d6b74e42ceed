"""Find, unpack or download data sets; incomplete files and folders are removed."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from minifast.errors import DownloadError
from minifast.utils.checks import check_number, did_you_mean
from minifast.utils.folders import home
from minifast.utils.locks import locked
from minifast.utils.public import public, show_all
from minifast.utils.text import is_terminal, write_text

_BASE = "https://s3.amazonaws.com/fast-ai-"


class URLs:
    """Addresses of fast.ai's data sets for ``untar_data``, without ``.tgz``."""

    MNIST_SAMPLE = f"{_BASE}sample/mnist_sample"
    MNIST_TINY = f"{_BASE}sample/mnist_tiny"
    MNIST = f"{_BASE}imageclas/mnist_png"
    CIFAR = f"{_BASE}sample/cifar10"
    CIFAR_100 = f"{_BASE}imageclas/cifar100"
    PETS = f"{_BASE}imageclas/oxford-iiit-pet"
    FLOWERS = f"{_BASE}imageclas/oxford-102-flowers"
    CALTECH_101 = f"{_BASE}imageclas/caltech_101"
    DOGS = "https://files.fast.ai/data/examples/dogscats"


# fast.ai publishes the size of an archive in bytes and the md5 of its first MiB, but no hash of the whole.
ARCHIVES: dict[str, tuple[int, str]] = {
    URLs.MNIST_SAMPLE: (3_214_948, "2dbc7ec6f9259b583af0072c55816a88"),
    URLs.MNIST_TINY: (342_207, "56143e8f24db90d925d82a5a74141875"),
    URLs.MNIST: (15_683_414, "03639f83c4e3d19e0a3a53a8a997c487"),
    URLs.CIFAR: (168_168_549, "a5f8c31371b63a406b23368042812d3c"),
    URLs.CIFAR_100: (169_168_619, "e5e65dcb54b9d3913f7b8a9ad6607e62"),
    URLs.PETS: (811_706_944, "e4db5c768afd933bb91f5f594d7417a4"),
    URLs.FLOWERS: (345_236_087, "5666e01c1311b4c67fcf20d2b3850a88"),
    URLs.CALTECH_101: (131_740_031, "d673425306e98ee4619fcdeef8a0e876"),
    URLs.DOGS: (839_285_364, "3e483c8d6ef2175e9d395a6027eb92b7"),
}


@public
def untar_data(
    url: str, dest: str | Path | None = None, force_download: bool = False, timeout: float = 10.0, silent: bool = False
) -> Path:
    """Return the folder of a data set; download and unpack it if it does not exist.

    The folder has the name of the archive: ``mnist_sample`` for ``URLs.MNIST_SAMPLE``. The first of these is used:

    1. the folder ``./data/NAME`` or ``home()/data/NAME``; with ``dest``, only ``dest/NAME``;
    2. the archive ``./data/NAME.tgz`` or ``home()/data/NAME.tgz``, without a check of its hash;
    3. a download. For the addresses in ``URLs``, size and md5 of the first MiB must be the published ones.

    Args:
        url: one of ``URLs``, or the http(s) address of a ``.tgz`` archive that holds one folder of the same name.
        dest: folder to unpack into; by default ``home()/data``.
        force_download: download again. The new folder replaces the old one when it is complete; files and folders that
            you added at its top, such as ``models``, are moved to the new one.
        timeout: seconds to wait for an answer, and for each part of a download.
        silent: do not print the progress line, which only a terminal gets.

    Returns:
        The folder. It appears when it is complete; after an error or Ctrl-C no incomplete file or folder is left.

    Raises:
        DownloadError: if the data set cannot be downloaded, checked, unpacked or written.
        ValueError: if ``url`` is not an http(s) address that ends in a file name.

    >>> path = untar_data(URLs.MNIST_SAMPLE)  # doctest: +SKIP
    >>> sorted(p.name for p in path.iterdir())  # doctest: +SKIP
    ['labels.csv', 'train', 'valid']
    """
    timeout = check_number("timeout", timeout, above=0)
    address, file, name = _parts(url)
    local, shared = Path.cwd() / "data", home() / "data"
    parents = [Path(dest).expanduser().absolute()] if dest is not None else [local, shared]
    target = next((p / name for p in parents if _has_files(p / name)), parents[-1] / name)
    if _has_files(target) and not force_download:
        return target
    with _in_turn(target) as is_done:
        return target if is_done else _make(target, address, file, name, force_download, timeout, silent)


@contextlib.contextmanager
def _in_turn(target: Path) -> Iterator[bool]:
    """Let the processes of one machine that torchrun started go one by one; yield whether another made the folder."""

    def made() -> int:
        return target.stat().st_ino if _has_files(target) else 0

    before = made()
    several = int(os.environ.get("LOCAL_WORLD_SIZE") or 1) > 1
    with locked(target) if several else contextlib.nullcontext():
        yield made() != before


def _make(target: Path, address: str, file: str, name: str, force_download: bool, timeout: float, silent: bool) -> Path:
    """Unpack or download a data set to ``target``, and return it."""
    if target.exists() and not target.is_dir():
        raise DownloadError(f"{target} must be a folder, but it is a file. Move it away, and call again.")
    shared = home() / "data"
    archives = (Path.cwd() / "data" / file, shared / file)
    archive = None if force_download else next((p for p in archives if p.is_file()), None)
    source, hint = str(archive), "Replace or delete it, and call again"
    try:
        with staging(target) as folder:
            if archive is None:
                archive, source = folder / file, f"The file from {address}"
                hint = f"You can also put the archive at {shared / file} yourself, and call again"
                _download(address, archive, timeout, is_terminal(sys.stderr) and not silent, hint)
                _check(address, archive, _published(address), hint)
                hint = f"Check the address. {hint}"
            new = _unpack(archive, folder / "new", name, source, hint)
            move_into_place(new, target, aside=folder / "old" if force_download else None)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{target} cannot be written ({error.strerror or error}). Free disk space or change its permissions, or "
            "set MINIFAST_HOME (or `dest`) to a folder that can be written."
        ) from error
    return target


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``, on the same file system; it is removed in any case."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}-"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def move_into_place(new: Path, target: Path, aside: Path | None = None) -> None:
    """Rename the folder ``new`` to ``target`` in one step; if another process was faster, its folder stays.

    An empty folder at ``target`` is replaced. With ``aside``, a free path, an old ``target`` is moved there first, and
    files and folders at its top that ``new`` lacks are moved to ``target``.
    """
    with contextlib.suppress(OSError):
        target.rmdir()  # fails unless it is empty
    try:
        if aside is not None:
            with contextlib.suppress(FileNotFoundError):
                target.rename(aside)
        try:
            new.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        if aside is not None and aside.exists():
            if not target.exists():
                aside.rename(target)
            elif not aside.is_symlink():  # the target of a link may be shared, so keep its files
                for item in aside.iterdir():
                    if not (target / item.name).exists():
                        item.rename(target / item.name)


def _parts(url: str) -> tuple[str, str, str]:
    """Return the address of the archive, its file name and its folder name.

    >>> _parts("https://example.org/sets/birds")
    ('https://example.org/sets/birds.tgz', 'birds.tgz', 'birds')
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        hint = did_you_mean(url.removeprefix("URLs."), [name for name in vars(URLs) if name.isupper()])
        raise ValueError(f"`url` must be an http or https address such as URLs.MNIST_SAMPLE, got {url!r}.{hint}")
    if not parts.path.endswith((".tgz", ".tar.gz")):
        parts = parts._replace(path=f"{parts.path}.tgz")
    file = PurePosixPath(unquote(parts.path)).name
    name = file.removesuffix(".tgz").removesuffix(".tar.gz")
    if not re.fullmatch(r"\w[\w.+ -]*", name):
        raise ValueError(f"The last part of `url` may only have letters, digits, _, -, + and dots, got {url!r}.")
    return parts.geturl(), file, name


class _Progress:
    """Progress bar for pooch: prints one line, and tells the waiting thread how far the download is."""

    total: int | None = None  # pooch sets it when the answer begins: the announced bytes, or 0 if unknown

    def __init__(self, name: str, show: bool) -> None:
        self.name, self.show = name, show
        self.done, self.line, self.stopped = 0, "", False

    def update(self, n: int) -> None:
        if self.stopped:
            raise InterruptedError("The download was stopped.")
        self.done += n
        size = max(self.total or 0, self.done)
        line = f"{self.name} {100 * self.done // size if self.total else '?':>3}% of {size / 1e6:.1f} MB"
        if self.show and line != self.line:
            self.line = line
            write_text(f"\r{line}", end="", stream=sys.stderr)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        if self.line and not self.stopped:
            write_text(stream=sys.stderr)
        self.stopped = True


def _download(address: str, file: Path, timeout: float, show: bool, hint: str) -> None:
    """Download ``address`` into ``file``; wait at most ``timeout`` seconds for the answer and for each part."""
    import pooch
    import requests

    progress, finished = _Progress(file.name, show), threading.Event()
    answers: list[requests.Response] = []
    failures: list[Exception] = []
    options = {
        "timeout": timeout,
        "headers": {"Accept-Encoding": "identity"},  # the archive itself is gzipped, and the server must not unzip it
        "hooks": {"response": lambda answer, **_: answers.append(answer)},  # pooch leaves them open after an error
    }

    def work() -> None:
        try:
            pooch.HTTPDownloader(progressbar=progress, chunk_size=2**16, **options)(address, str(file), None)
        except Exception as error:
            failures.append(error)
        finally:
            for answer in answers:
                answer.close()
            finished.set()

    # The timeout of requests covers each connection and each read, but not name resolution, several addresses or
    # redirects, or slow headers. So the download runs in a thread that can be abandoned.
    threading.Thread(target=work, daemon=True, name=f"download {file.name}").start()
    deadline = time.monotonic() + timeout
    try:
        while not finished.wait(0.1):  # in short steps, because Windows handles Ctrl-C only between them
            if progress.total is None and time.monotonic() > deadline:
                failures.append(requests.Timeout("No answer began in time."))
                break
    finally:
        progress.close()
    if not failures:
        return
    error, host = failures[0], urlsplit(address).netloc
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        raise error
    if isinstance(error, requests.HTTPError):
        what = f"{host} refused the download ({error}). Check the address"
    elif progress.total is not None:
        why = f"received nothing for {timeout:g} seconds" if "timed out" in str(error) else "broke off"
        what = f"The download of {address} {why} before all of its {progress.total:,} bytes arrived. Try again"
    elif isinstance(error, requests.Timeout):
        what = f"{host} did not answer within {timeout:g} seconds. Try again with a longer `timeout`"
    else:
        what = f"{host} cannot be reached ({type(error).__name__}). Check the network"
    offline = ""
    if address == _parts(URLs.MNIST_SAMPLE)[0]:
        offline = (
            " Without a network, `from minifast.data import generate_sample` and `path = generate_sample()` make "
            "images of 3s and 7s in the same folders."
        )
    cause = error if show_all() else None  # a hundred lines of the HTTP libraries
    raise DownloadError(f"{what}.", hint=f"{hint}.{offline}", cli_hint=f"{hint}.") from cause


def _published(address: str) -> tuple[int, str] | None:
    """Return size and hash of an address in ``URLs``, also for its http form, which older code may use."""
    name = address.removesuffix(".tgz")
    return ARCHIVES.get(name) or ARCHIVES.get(name.replace("http:", "https:", 1))


def _check(address: str, file: Path, known: tuple[int, str] | None, hint: str) -> None:
    """Compare size and hash of a downloaded file with the published ones, if there are any."""
    with file.open("rb") as stream:
        actual = file.stat().st_size, hashlib.md5(stream.read(2**20), usedforsecurity=False).hexdigest()
    if known is not None and actual != known:
        raise DownloadError(
            f"{address} must give {known[0]:,} bytes with the md5 {known[1]} of the first MiB, got {actual[0]:,} bytes "
            f"with {actual[1]}. Try again. {hint}."
        )


DAMAGED_HEADER = (ValueError, OverflowError, RecursionError)  # what tarfile raises for some of them


def _unpack(archive: Path, folder: Path, name: str, source: str, hint: str) -> Path:
    """Unpack plain files and folders into the new ``folder``, refuse all other members, and return ``folder/name``."""
    folder.mkdir()
    try:
        # A stream cannot seek backwards, so that damaged sizes end with an error, not in a loop.
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                _extract(tar, member, folder)
            while stream.read(2**20):  # at its end, gzip compares the checksum
                pass
    except _MemberError as error:
        raise DownloadError(f"{source} was not unpacked: {error}. {hint}.") from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, *DAMAGED_HEADER) as error:
        raise DownloadError(f"{source} is not a complete .tgz archive ({error}). {hint}.") from error
    if not (folder / name).is_dir():
        names = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise DownloadError(f"{source} must have one folder named {name} at its top, got {names}. {hint}.")
    return folder / name


class _MemberError(Exception):
    """Raised for a member of an archive that is not unpacked."""


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write a plain file or create a folder.

    ``TarFile.extract`` is not used: its filters follow links, which some releases of Python resolve wrongly. Here no
    link is ever created, so no path below ``folder`` can lead out of it.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or (os.name == "nt" and ":" in member.name):
        raise _MemberError(f"its member {member.name!r} would leave the folder")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise _MemberError(f"its member {member.name!r} is neither a plain file nor a folder")
    if member.size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, f"No space left for {member.name}, which has {member.size:,} bytes")
    target = folder.joinpath(*path.parts)
    try:
        (target if member.isdir() else target.parent).mkdir(parents=True, exist_ok=True)
        if not target.resolve().is_relative_to(folder.resolve()):
            raise _MemberError(f"its member {member.name!r} would leave the folder")
        content = tar.extractfile(member)
        if content is not None:
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
            with contextlib.suppress(OSError, ValueError, OverflowError):  # an archive may hold any time
                os.utime(target, (member.mtime, member.mtime))
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _MemberError(f"its member {member.name!r} is both a file and a folder") from error
