"""What the tests share: one thread, an empty home, no display, small data."""

from __future__ import annotations

import ipaddress
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from minifast import Callback, DataBunch, Learner, accuracy, simple_ann
from minifast.data.synthetic import generate_sample

mpl.use("agg")
torch.set_num_threads(1)  # two threads beside any other load can be many times slower than one

ARCHIVE = "mnist_sample.tgz"


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a home of its own, so that no test reads or leaves anything in the user's."""
    home = tmp_path / "home"
    monkeypatch.setenv("MINIFAST_HOME", str(home))
    return home


def is_this_machine(host: object) -> bool:
    """Whether a host name or address is a loopback one."""
    try:
        return host in (None, "", "localhost") or ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:  # another name
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that looks up or connects to another machine, even if the code under test catches errors."""

    def guard(owner: object, name: str, host_in: Callable[..., object]) -> None:
        original = getattr(owner, name)

        def guarded(*args, **kwargs):
            if not is_this_machine(host := host_in(*args, **kwargs)):
                pytest.fail(f"This test uses the network: {name} of {host}.")
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, guarded)

    def address_host(sock: socket.socket, address: object) -> object:
        return address[0] if sock.family in (socket.AF_INET, socket.AF_INET6) else None

    guard(socket, "getaddrinfo", lambda host, *_, **__: host.decode() if isinstance(host, bytes) else host)
    guard(socket.socket, "connect", address_host)
    guard(socket.socket, "connect_ex", address_host)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def find_archive() -> Path | None:
    """Return the real MNIST_SAMPLE archive, from MINIFAST_HOME or from beside the checkout, or None."""
    home = Path(os.environ.get("MINIFAST_HOME", Path.home() / ".minifast"))
    beside = Path(__file__).parents[2] / "shared" / "data"
    return next((path for path in (home / "data" / ARCHIVE, beside / ARCHIVE) if path.is_file()), None)


FOUND_ARCHIVE = find_archive()  # before any test gets a home of its own


@pytest.fixture(scope="session")
def mnist_archive() -> Path:
    if FOUND_ARCHIVE is None:
        pytest.skip(f"no {ARCHIVE} in MINIFAST_HOME/data or ../shared/data; put the archive there to run this test")
    return FOUND_ARCHIVE


@pytest.fixture(scope="session")
def mnist_sample(mnist_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real MNIST_SAMPLE, unpacked once."""
    folder = tmp_path_factory.mktemp("mnist")
    with tarfile.open(mnist_archive) as archive:
        archive.extractall(folder, filter="data")
    return folder / "mnist_sample"


@pytest.fixture
def pictures(empty_home: Path) -> None:
    """Small generated sample data where MNIST_SAMPLE is looked for, which takes a tenth of the time of the real one."""
    generate_sample(empty_home / "data" / "mnist_sample", n_train=640, n_valid=100)


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the export for inference, which takes most of the time of a short ``minifast train``."""
    monkeypatch.setattr(Learner, "export", lambda learn: None)


def toy_items(n: int = 60, seed: int = 0) -> TensorDataset:
    """Two classes of ten numbers that a small network can tell apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 10, generator=generator) + y[:, None]
    return TensorDataset(x, y)


def toy_data(n: int = 60, bs: int = 20, shuffle: bool = False) -> DataBunch:
    """A bunch of toy items from a pair of torch DataLoaders: n / bs batches each."""
    items = toy_items(n)
    generator = torch.Generator().manual_seed(1)
    train_dl = DataLoader(items, bs, shuffle=shuffle, generator=generator if shuffle else None)
    return DataBunch(train_dl, DataLoader(items, bs), device="cpu")


def toy_learner(n: int = 60, bs: int = 20, **kwargs) -> Learner:
    """A silent learner over toy data, the same one each time."""
    torch.manual_seed(0)
    options = {"metrics": [accuracy], "silent": True} | kwargs
    return Learner(toy_data(n, bs), simple_ann(10, 2, 8), **options)


def write_images(folder: Path, n: int, size: tuple[int, int] = (28, 28), mode: str = "L", seed: int = 0) -> None:
    """Write ``n`` random PNG pictures, ``size`` as (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    channels = () if mode == "L" else (3,)
    for i in range(n):
        pixels = rng.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")


class FailsAt(Callback):
    """Ends a run with an error before a training batch; it has no state of its own."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def on_batch_begin(self, iteration, train):
        if train and iteration == self.at:
            raise OSError("gone")

    def state_dict(self):
        return {}


def rates_used(learn: Learner) -> tuple[list[list[float]], Callback]:
    """A list, and a callback that puts the rates of the layer groups into it at each training batch."""
    used: list[list[float]] = []

    class Notes(Callback):
        def on_backward_end(self):
            used.append(learn.opt.read("lr"))

    return used, Notes()


def as_html(content: object) -> str:
    """fastprogress 1.0 shows text, later versions objects that IPython asks for HTML."""
    to_html = getattr(content, "_repr_html_", None) or getattr(content, "__html__", None)
    return content if isinstance(content, str) or to_html is None else to_html()
