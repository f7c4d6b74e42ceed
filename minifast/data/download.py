"""Data sets by name: found here, unpacked from a local archive, or downloaded; nothing half-written stays behind."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
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

_BASE = "https://s3.amazonaws.com/fast-ai-"


class URLs:
    """The data sets of fast.ai that ``untar_data`` knows: their addresses, without the ``.tgz``."""

    MNIST_SAMPLE = f"{_BASE}sample/mnist_sample"
    MNIST_TINY = f"{_BASE}sample/mnist_tiny"
    MNIST = f"{_BASE}imageclas/mnist_png"
    CIFAR = f"{_BASE}sample/cifar10"
    CIFAR_100 = f"{_BASE}imageclas/cifar100"
    PETS = f"{_BASE}imageclas/oxford-iiit-pet"
    FLOWERS = f"{_BASE}imageclas/oxford-102-flowers"
    CALTECH_101 = f"{_BASE}imageclas/caltech_101"
    DOGS = "http://files.fast.ai/data/examples/dogscats"


# What fast.ai publishes of an archive is its size in bytes and the md5 of its first MiB; of the whole there is none.
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


def home() -> Path:
    """Return the folder minifast keeps things in: ``MINIFAST_HOME``, or else ``~/.minifast``; nothing is created."""
    return Path(os.environ.get("MINIFAST_HOME") or "~/.minifast").expanduser().absolute()


def untar_data(
    url: str, dest: str | Path | None = None, force_download: bool = False, timeout: float = 10.0, silent: bool = False
) -> Path:
    """Return the folder of a data set, fetched and unpacked unless it is already here.

    The folder is named as the archive: ``mnist_sample`` for ``URLs.MNIST_SAMPLE``. The first that exists is taken:

    1. the folder ``./data/NAME`` or ``home()/data/NAME``; with ``dest``, only ``dest/NAME``;
    2. the archive ``./data/NAME.tgz`` or ``home()/data/NAME.tgz``, used without a check, since you put it there;
    3. a download. For the addresses in ``URLs`` the size and the md5 of the first MiB must be the published ones.

    Args:
        url: one of ``URLs``, or the http(s) address of any ``.tgz`` that holds one folder of its own name.
        dest: the folder to unpack into, for another place than ``home()/data``.
        force_download: download anew. The new folder replaces the old one once it is whole; what you added
            at its top, such as ``models``, is carried over.
        timeout: the most seconds to wait for an answer, and for each next piece of a download.
        silent: print nothing. A progress line is printed to a terminal only, in any case.

    Raises ``DownloadError``, and leaves no half-written file or folder, also upon Ctrl-C.

    >>> path = untar_data(URLs.MNIST_SAMPLE)  # doctest: +SKIP
    >>> sorted(p.name for p in path.iterdir())  # doctest: +SKIP
    ['labels.csv', 'train', 'valid']
    """
    timeout = check_number("timeout", timeout, above=0)
    address, file, name = _parts(url)
    local, kept = Path.cwd() / "data", home() / "data"
    parents = [Path(dest).expanduser().absolute()] if dest is not None else [local, kept]
    target = next((p / name for p in parents if (p / name).is_dir()), parents[-1] / name)
    if target.is_dir() and not force_download:
        return target
    if target.exists() and not target.is_dir():
        raise DownloadError(f"{target} is a file where a folder should be; move it away, and call again.")
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError(
            f"Python {sys.version.split()[0]} cannot unpack an archive safely, for its tarfile lacks the data filter "
            "of PEP 706; use a newer patch release: 3.10.12, 3.11.4, or any of 3.12 and later."
        )
    archive = None if force_download else next((p / file for p in (local, kept) if (p / file).is_file()), None)
    source, way_out = str(archive), "replace or delete it, and call again"
    try:
        with staging(target) as folder:
            if archive is None:
                archive, source = folder / file, f"What {address} delivered"
                way_out = f"or put the archive at {kept / file} yourself, and call again"
                _download(address, archive, timeout, sys.stderr.isatty() and not silent, way_out)
                _check(address, archive, ARCHIVES.get(address.removesuffix(".tgz")), way_out)
                way_out = f"check the address, {way_out}"
            new = _unpack(archive, folder / "new", name, source, way_out)
            move_into_place(new, target, aside=folder / "old" if force_download else None)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{target} cannot be written ({error.strerror or error}); "
            "free or unlock that place, or set MINIFAST_HOME (or dest) to a folder that can be written."
        ) from error
    return target


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target``, on the same file system; it is removed however the block ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}-"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def move_into_place(new: Path, target: Path, aside: Path | None = None) -> None:
    """Rename the folder ``new`` to ``target`` in one step; where another process was faster, its folder stays.

    An empty folder at ``target`` is taken for none. With ``aside``, a free path, an old ``target`` is moved there
    first, and what it held at its top beyond ``new`` is carried over.
    """
    with contextlib.suppress(OSError):
        target.rmdir()  # refused unless it is empty
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
            elif not aside.is_symlink():  # what a link leads to may be shared: it is not emptied
                for item in aside.iterdir():
                    if not (target / item.name).exists():
                        item.rename(target / item.name)


def _parts(url: str) -> tuple[str, str, str]:
    """Return the address of the archive, its file's name and its folder's name.

    >>> _parts("https://example.org/sets/birds")
    ('https://example.org/sets/birds.tgz', 'birds.tgz', 'birds')
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        hint = did_you_mean(url.removeprefix("URLs."), [name for name in vars(URLs) if name.isupper()])
        raise ValueError(f"url is {url!r}; it must be an http or https address, such as URLs.MNIST_SAMPLE.{hint}")
    if not parts.path.endswith((".tgz", ".tar.gz")):
        parts = parts._replace(path=f"{parts.path}.tgz")
    file = PurePosixPath(unquote(parts.path)).name
    name = file.removesuffix(".tgz").removesuffix(".tar.gz")
    if not re.fullmatch(r"\w[\w.+ -]*", name):
        raise ValueError(f"url is {url!r}; its last part names a folder: letters, digits, _, -, + and dots, no other.")
    return parts.geturl(), file, name


class _Watch:
    """What pooch tells of a download as its progress bar: shown on one line, and read by the thread that waits."""

    total: int | None = None  # the bytes announced, 0 if unknown; pooch sets it when the answer has begun

    def __init__(self, name: str, show: bool) -> None:
        self.name, self.show = name, show
        self.done, self.line, self.stopped = 0, "", False

    def update(self, n: int) -> None:
        if self.stopped:
            raise InterruptedError("Nobody waits for this download any more.")
        self.done += n
        size = max(self.total or 0, self.done)
        line = f"{self.name} {100 * self.done // size if self.total else '?':>3}% of {size / 1e6:.1f} MB"
        if self.show and line != self.line:
            self.line = line
            print(f"\r{line}", end="", file=sys.stderr, flush=True)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        if self.line and not self.stopped:
            print(file=sys.stderr)
        self.stopped = True


def _download(address: str, file: Path, timeout: float, show: bool, way_out: str) -> None:
    """Fetch ``address`` into ``file``, waiting at most ``timeout`` seconds for the answer and for each next piece."""
    import pooch
    import requests

    watch, finished = _Watch(file.name, show), threading.Event()
    answers: list[requests.Response] = []
    failures: list[Exception] = []
    options = {
        "timeout": timeout,
        "headers": {"Accept-Encoding": "identity"},  # the gzip is the archive's own: no server shall undo it
        "hooks": {"response": lambda answer, **_: answers.append(answer)},  # pooch leaves them open when it fails
    }

    def work() -> None:
        try:
            pooch.HTTPDownloader(progressbar=watch, chunk_size=2**16, **options)(address, str(file), None)
        except Exception as error:
            failures.append(error)
        finally:
            for answer in answers:
                answer.close()
            finished.set()

    # requests bounds each connection and each read, but neither the look-up of a name, nor a row of addresses or
    # redirects, nor headers that trickle in; so all of it happens in a thread that can be left behind.
    threading.Thread(target=work, daemon=True, name=f"download {file.name}").start()
    deadline = time.monotonic() + timeout
    try:
        while not finished.wait(0.1):  # in short steps, for Windows hears Ctrl-C only between them
            if watch.total is None and time.monotonic() > deadline:
                failures.append(requests.Timeout("No answer began in time."))
                break
    finally:
        watch.close()
    if not failures:
        return
    error, host = failures[0], urlsplit(address).netloc
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        raise error
    if isinstance(error, requests.HTTPError):
        what = f"{host} refused ({error}); check the address"
    elif watch.total is not None:
        why = f"stood still for {timeout:g} seconds" if "timed out" in str(error) else "broke off"
        what = f"The download of {address} {why} before all of its {watch.total:,} bytes had come; try again"
    elif isinstance(error, requests.Timeout):
        what = f"{host} did not answer within {timeout:g} seconds; try again with a longer timeout"
    else:
        what = f"{host} cannot be reached ({type(error).__name__}); check the network"
    raise DownloadError(f"{what}, {way_out}.") from error


def _check(address: str, file: Path, known: tuple[int, str] | None, way_out: str) -> None:
    """Compare a downloaded file with what is published of it, if anything is."""
    with file.open("rb") as stream:
        found = file.stat().st_size, hashlib.md5(stream.read(2**20), usedforsecurity=False).hexdigest()
    if known is not None and found != known:
        raise DownloadError(
            f"{address} is not the file expected: it delivered {found[0]:,} bytes, the md5 of whose first MiB is "
            f"{found[1]}, in place of {known[0]:,} bytes and {known[1]}; try again, {way_out}."
        )


def _unpack(archive: Path, folder: Path, name: str, source: str, way_out: str) -> Path:
    """Unpack into the new ``folder`` and return ``folder/name``; no member may be absolute, lead out or be a device."""

    def guard(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        if member.name.startswith(("/", "\\")):  # the data filter would strip the slash and go on
            raise tarfile.AbsolutePathError(member)
        return tarfile.data_filter(member, path)

    folder.mkdir()
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            tar.extractall(folder, filter=guard)
            while stream.read(2**20):  # to its end, where gzip compares its checksum of the whole
                pass
    except tarfile.FilterError as error:
        bad = f"its member {error.tarinfo.name!r} would leave the folder, or is no plain file or folder"
        raise DownloadError(f"{source} was not unpacked, as {bad}; {way_out}.") from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DownloadError(f"{source} is no whole .tgz archive ({error}); {way_out}.") from error
    if not (folder / name).is_dir():
        held = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise DownloadError(f"{source} holds {held}; it must hold one folder named {name} at its top; {way_out}.")
    return folder / name
