"""What the tests share: an empty home, no network, no file left behind. What they import from here is in shared.py."""

from __future__ import annotations

import gc
import ipaddress
import itertools
import os
import shutil
import signal
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

ARCHIVE, PHOTOGRAPHS = "mnist_sample.tgz", "ants_bees.tgz"
NUMBERS = itertools.count()
IN_CHECKOUT = Path(__file__).parents[1] / "models"


def __getattr__(name: str) -> object:
    # The process that distributes the tests imports this file too, and would wait seconds for torch.
    if name.startswith(("_", "pytest_", "collect_")):  # pytest looks for these
        raise AttributeError(name)
    import shared

    return getattr(shared, name)


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts a process in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.getoption("numprocesses", None):  # this process runs tests
        import shared  # noqa: F401


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # a full collection takes longer than most tests, and finds nothing in what was imported


@pytest.fixture(autouse=True)
def empty_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a home of its own, so that no test reads or leaves anything in the user's."""
    home = tmp_path_factory.getbasetemp() / "homes" / str(next(NUMBERS))
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


def models_in_checkout() -> set[str]:
    return set(os.listdir(IN_CHECKOUT)) if IN_CHECKOUT.is_dir() else set()  # noqa: PTH208  (a test replaces scandir)


@pytest.fixture(autouse=True)
def nothing_left():
    """Close the figures of a test, and fail if it has written models into the checkout."""
    before = models_in_checkout()
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
    new = models_in_checkout() - before
    assert not new, f"A test wrote {new}; give its learner path=tmp_path."


def find_archive(name: str = ARCHIVE) -> Path | None:
    """Return an archive of real images, by default MNIST_SAMPLE, from MINIFAST_HOME or beside the checkout, or None."""
    home = Path(os.environ.get("MINIFAST_HOME", Path.home() / ".minifast"))
    beside = Path(__file__).parents[2] / "shared" / "data"
    return next((path for path in (home / "data" / name, beside / name) if path.is_file()), None)


FOUND_PHOTOGRAPHS = find_archive(PHOTOGRAPHS)
FOUND_ARCHIVE = find_archive()  # before any test gets a home of its own


@pytest.fixture(scope="session")
def mnist_archive() -> Path:
    if FOUND_ARCHIVE is None:
        pytest.skip(f"no {ARCHIVE} in MINIFAST_HOME/data or ../shared/data; put the archive there to run this test")
    return FOUND_ARCHIVE


@pytest.fixture(scope="session")
def ants_bees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs of ants and bees, unpacked once."""
    if FOUND_PHOTOGRAPHS is None:
        pytest.skip(f"no {PHOTOGRAPHS} in MINIFAST_HOME/data or ../shared/data; put it there to run this test")
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(FOUND_PHOTOGRAPHS) as archive:
        archive.extractall(folder, filter="data")
    return folder / "ants_bees"


@pytest.fixture(scope="session")
def mnist_sample(mnist_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real MNIST_SAMPLE, unpacked once."""
    folder = tmp_path_factory.mktemp("mnist")
    with tarfile.open(mnist_archive) as archive:
        archive.extractall(folder, filter="data")
    return folder / "mnist_sample"


@pytest.fixture(scope="session")
def generated_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate the data of ``pictures`` once."""
    from minifast.data.synthetic import generate_sample

    return generate_sample(tmp_path_factory.mktemp("generated") / "mnist_sample", n_train=640, n_valid=100)


@pytest.fixture
def pictures(empty_home: Path, generated_sample: Path) -> None:
    """Small generated sample data where MNIST_SAMPLE is looked for, which takes a tenth of the time of the real one."""
    shutil.copytree(generated_sample, empty_home / "data" / "mnist_sample", copy_function=os.link)


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the export for inference, which takes most of the time of a short ``minifast train``."""
    monkeypatch.setattr("minifast.learner.learner.Learner.export", lambda learn: None)


def leave_out_plots(patch: pytest.MonkeyPatch) -> None:
    """Leave out the figures and the page of ``minifast train``, which take most of the rest of the time."""
    patch.setattr("minifast.cli.train.report", lambda *_: None)
    patch.setattr("minifast.cli.train.save_figure", lambda *_: None)


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_plots(monkeypatch)
