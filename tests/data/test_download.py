"""What untar_data does when all is well, and when a server, a file, a folder or the user is not."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import minifast.data.download as urls
from minifast.data.download import ARCHIVES, URLs, home, untar_data
from minifast.errors import DownloadError

REAL_ARCHIVE = home() / "data" / "mnist_sample.tgz"  # before the tests get homes of their own
ROOT = Path(urls.__file__).parents[2]


def tgz(files: dict[str, bytes], *odd: tarfile.TarInfo) -> bytes:
    """A .tgz in memory: ``files`` as they are, then members that are no plain files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in odd:
            tar.addfile(member)
    return gzip.compress(raw.getvalue(), mtime=0)


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


BIRDS = tgz({"birds/train/wren/0.png": os.urandom(200_000), "birds/labels.csv": b"name,label\n"})


def tree(folder: Path) -> set[str]:
    """Every file below ``folder``, and every folder but the empty one that downloads go to."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*")} - {"data"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A home and a working directory of the test's own, and no proxy between it and its server."""
    monkeypatch.setenv("MINIFAST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "home"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.answer(self)

    def log_message(self, *args):
        pass

    def head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@pytest.fixture
def server():
    """A server on this machine; a test sets ``answer`` (what is done with a request) or ``body``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.body, server.over = [], BIRDS, threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/birds"
        server.daemon_threads = True

        def answer(request):
            request.head(len(server.body))
            request.wfile.write(server.body)

        server.answer = answer
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def check_refused(url: str, match: str, place: Path, timeout: float = 5.0) -> DownloadError:
    """``untar_data`` must fail with this sentence and leave the home as it was."""
    before = tree(place)
    with pytest.raises(DownloadError, match=match) as caught:
        untar_data(url, timeout=timeout)
    assert tree(place) == before
    assert str(caught.value).endswith(".")
    return caught.value


# ---------------------------------------------------------------- what is known


def test_the_published_facts():
    assert ARCHIVES[URLs.MNIST_SAMPLE] == (3214948, "2dbc7ec6f9259b583af0072c55816a88")
    named = {name: url for name, url in vars(URLs).items() if name.isupper()}
    assert set(named.values()) == set(ARCHIVES)
    assert len(named) == 9
    assert not any(url.endswith(".tgz") for url in named.values())
    assert all(len(md5) == 32 and size > 2**18 for size, md5 in ARCHIVES.values())


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIFAST_HOME", "~/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert home() == tmp_path / "elsewhere"
    monkeypatch.delenv("MINIFAST_HOME")
    assert home() == tmp_path / ".minifast"
    assert not home().exists()


def test_importing_urls_loads_the_standard_library_only():
    code = f"""
import sys, types
for name, path in [("minifast", {str(ROOT / "minifast")!r}), ("minifast.data", {str(ROOT / "minifast/data")!r})]:
    sys.modules[name] = types.ModuleType(name)  # the packages' own imports are not the matter here
    sys.modules[name].__path__ = [path]
before = set(sys.modules)
import minifast.data.download
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
assert new <= set(sys.stdlib_module_names) | {{"minifast"}}, new
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("url", ["mnist_sample", "file:///etc/birds", "ftp://x.org/birds", "https://", ""])
def test_an_invalid_address_raises_first(url):
    with pytest.raises(ValueError, match="must be an http or https address"):
        untar_data(url)


def test_a_misspelt_name_gets_a_hand():
    with pytest.raises(ValueError, match="Did you mean MNIST_SAMPLE"):
        untar_data("URLs.MNIST_SAMPEL")


@pytest.mark.parametrize("path", ["..", "%2e%2e%2f..", "a/", ".tgz", "a%5Cb"])
def test_an_address_whose_name_is_not_a_folder_name_raises_first(path):
    with pytest.raises(ValueError, match=r"^The last part of `url` may only have letters"):
        untar_data(f"http://example.org/{path}")


def test_timeout_must_be_a_positive_number():
    with pytest.raises(ValueError, match="`timeout` must be positive, got 0"):
        untar_data(URLs.MNIST_SAMPLE, timeout=0)


# ---------------------------------------------------------------- what is here already


def test_a_folder_is_used_as_it_is(place):
    folder = place / "data" / "mnist_sample"
    folder.mkdir(parents=True)
    (folder / "labels.csv").touch()
    assert untar_data(URLs.MNIST_SAMPLE) == folder


def test_an_empty_folder_is_not_a_data_set(server, place):
    (place / "data" / "birds").mkdir(parents=True)
    assert {p.name for p in untar_data(server.url).iterdir()} == {"labels.csv", "train"}


def test_the_folder_in_the_working_directory_comes_first(place):
    for folder in (place / "data" / "birds", Path.cwd() / "data" / "birds"):
        folder.mkdir(parents=True)
        (folder / "a").touch()
    assert untar_data("http://127.0.0.1:1/birds") == Path.cwd() / "data" / "birds"


@pytest.mark.parametrize("where", ["home", "cwd"])
def test_a_local_archive_needs_no_network_and_stays(where, place):
    folder = place / "data" if where == "home" else Path.cwd() / "data"
    folder.mkdir(parents=True)
    (folder / "mnist_sample.tgz").write_bytes(tgz({"mnist_sample/labels.csv": b"mine"}))
    path = untar_data(URLs.MNIST_SAMPLE)
    assert path == place / "data" / "mnist_sample"
    assert (path / "labels.csv").read_bytes() == b"mine"
    assert (folder / "mnist_sample.tgz").exists()
    assert {p.name for p in path.parent.iterdir()} <= {"mnist_sample", "mnist_sample.tgz"}


def test_dest_is_the_folder_to_unpack_into(place, tmp_path, server):
    assert untar_data(server.url, dest=tmp_path / "there") == tmp_path / "there" / "birds"
    assert untar_data(server.url, dest=str(tmp_path / "there")) == tmp_path / "there" / "birds"
    assert len(server.asked) == 1
    assert not place.exists()


def test_a_broken_local_archive_is_named(place):
    (place / "data").mkdir(parents=True)
    (place / "data" / "birds.tgz").write_bytes(BIRDS[: len(BIRDS) // 2])
    error = check_refused("http://127.0.0.1:1/birds", "is not a complete .tgz archive", place)
    assert str(place / "data" / "birds.tgz") in str(error)


@pytest.mark.slow
@pytest.mark.skipif(not REAL_ARCHIVE.exists(), reason=f"the archive of MNIST_SAMPLE is not at {REAL_ARCHIVE}")
def test_the_real_archive(place):
    (place / "data").mkdir(parents=True)
    (place / "data" / REAL_ARCHIVE.name).symlink_to(REAL_ARCHIVE)
    path = untar_data(URLs.MNIST_SAMPLE)
    counts = {name: len(list((path / name).iterdir())) for name in ("train/3", "train/7", "valid/3", "valid/7")}
    assert counts == {"train/3": 6131, "train/7": 6265, "valid/3": 1010, "valid/7": 1028}


# ---------------------------------------------------------------- a download


def known(server, monkeypatch, body: bytes) -> None:
    monkeypatch.setitem(ARCHIVES, server.url, (len(body), hashlib.md5(body[: 2**20]).hexdigest()))


@pytest.mark.parametrize("checked", [True, False])
def test_a_download(checked, server, place, monkeypatch, capfd):
    if checked:
        known(server, monkeypatch, BIRDS)
    path = untar_data(server.url)
    assert path == place / "data" / "birds"
    files = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}
    assert files == {"data/birds/labels.csv", "data/birds/train/wren/0.png"}
    assert untar_data(server.url) == path
    assert server.asked == ["/birds.tgz"]
    assert capfd.readouterr() == ("", "")


def test_an_address_may_end_as_the_archive_does(server, place):
    server.body = tgz({"birds/a": b"1"})
    for end in (".tgz", ".tar.gz?key=1"):
        assert untar_data(server.url + end, dest=place / end[1:4]).name == "birds"
    assert server.asked == ["/birds.tgz", "/birds.tar.gz?key=1"]


def test_only_the_first_mebibyte_is_hashed_and_gzip_vouches_for_the_rest(server, place, monkeypatch):
    body = tgz({"birds/a": os.urandom(2**21)})
    known(server, monkeypatch, body)
    server.body = body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]  # the last byte before gzip's trailer
    check_refused(server.url, "is not a complete .tgz archive", place)
    server.body = body[:-8] + bytes([body[-8] ^ 1]) + body[-7:]  # the checksum itself
    check_refused(server.url, "is not a complete .tgz archive", place)
    server.body = body
    assert (untar_data(server.url) / "a").stat().st_size == 2**21


def test_force_download_takes_the_new_and_keeps_what_was_added(server, place):
    path = untar_data(server.url)
    (path / "models").mkdir()
    (path / "models" / "best.pth").write_bytes(b"weights")
    (place / "data" / "birds.tgz").write_bytes(tgz({"birds/labels.csv": b"local"}))
    server.body = tgz({"birds/labels.csv": b"new"})
    assert untar_data(server.url, force_download=True) == path
    assert (path / "labels.csv").read_bytes() == b"new"
    assert (path / "models" / "best.pth").read_bytes() == b"weights"
    assert {p.name for p in (place / "data").iterdir()} == {"birds", "birds.tgz"}


def test_force_download_that_fails_keeps_the_old(server, place):
    untar_data(server.url)
    before = tree(place)
    server.body = b"no tar"
    with pytest.raises(DownloadError):
        untar_data(server.url, force_download=True)
    assert tree(place) == before


@pytest.mark.parametrize("silent", [False, True])
def test_a_terminal_sees_one_line(silent, server, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    untar_data(server.url, silent=silent)
    out, err = capsys.readouterr()
    assert out == ""
    if silent:
        assert err == ""
    else:
        assert err.endswith("\rbirds.tgz 100% of 0.2 MB\n")
        assert err.count("\n") == 1


# ---------------------------------------------------------------- a download that fails


def test_another_file_than_the_one_expected(server, place, monkeypatch):
    known(server, monkeypatch, b"!" + BIRDS[1:])
    error = check_refused(server.url, r"must give .* bytes with the md5 .* of the first MiB, got ", place)
    assert hashlib.md5(BIRDS[: 2**20]).hexdigest() in str(error)


@pytest.mark.parametrize("end", ["", ".tgz"])
def test_another_size_than_the_one_expected(end, server, place, monkeypatch):
    known(server, monkeypatch, BIRDS)
    server.body = BIRDS[:1000]
    check_refused(server.url + end, "got 1,000 bytes", place)


def test_cut_off_half_way(server, place):
    def answer(request):
        request.head(len(BIRDS))
        request.wfile.write(BIRDS[: len(BIRDS) // 2])

    server.answer = answer
    check_refused(server.url, f"broke off before all of its {len(BIRDS):,} bytes arrived", place)


def test_a_server_that_accepts_and_never_answers(server, place):
    server.answer = lambda request: server.over.wait(5)
    begin = time.monotonic()
    check_refused(server.url, "did not answer within 0.3 seconds", place, timeout=0.3)
    assert time.monotonic() - begin < 2


def test_headers_that_trickle_in_are_no_answer(server, place):
    def answer(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not server.over.wait(0.1):
            request.wfile.write(b"x")

    server.answer = answer
    begin = time.monotonic()
    check_refused(server.url, "did not answer within 0.4 seconds", place, timeout=0.4)
    assert time.monotonic() - begin < 2


def test_a_download_that_stands_still(server, place):
    def answer(request):
        request.head(len(BIRDS))
        request.wfile.write(BIRDS[:1000])
        server.over.wait(5)

    server.answer = answer
    check_refused(server.url, "received nothing for 0.3 seconds", place, timeout=0.3)


def test_a_slow_download_may_take_longer_than_the_timeout(server):
    def answer(request):
        body = tgz({"birds/a": b"1"})
        request.head(len(body))
        for i in range(0, len(body), len(body) // 5):
            request.wfile.write(body[i : i + len(body) // 5])
            time.sleep(0.15)

    server.answer = answer
    begin = time.monotonic()
    assert untar_data(server.url, timeout=0.5).is_dir()
    assert time.monotonic() - begin > 0.5


def test_a_name_that_is_looked_up_for_ever(place, monkeypatch):
    over = threading.Event()

    def getaddrinfo(*args, **kwargs):
        over.wait(5)
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    begin = time.monotonic()
    check_refused("http://example.org/birds", "example.org did not answer within 0.3 seconds", place, timeout=0.3)
    assert time.monotonic() - begin < 2
    over.set()


@pytest.mark.parametrize("debug", ["0", "1"])
def test_404_without_the_frames_of_the_http_libraries(debug, server, place, monkeypatch):
    monkeypatch.setenv("MINIFAST_DEBUG", debug)
    server.answer = lambda request: request.send_error(404)
    error = check_refused(server.url, "refused the download .*404.*Check the address", place)
    assert (error.__cause__ is not None) == (debug == "1")
    assert error.__suppress_context__


def test_no_network_says_where_to_put_the_archive(place):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/birds"
    error = check_refused(url, "cannot be reached", place)
    assert f"put the archive at {place / 'data' / 'birds.tgz'} yourself" in str(error)


def test_the_advice_without_a_network_is_code_that_runs(place, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/birds"
    monkeypatch.setattr(URLs, "MNIST_SAMPLE", url)
    monkeypatch.setattr("minifast.data.generate_sample", lambda: place)
    names: dict[str, object] = {}
    for code in re.findall("`(.+?)`", str(check_refused(url, "cannot be reached", place))):
        exec(code, names)
    assert names["path"] == place


def test_a_download_that_nobody_waits_for_ends(server):
    progress = urls._Progress("birds.tgz", show=False)
    progress.close()
    with pytest.raises(InterruptedError):
        progress.update(1)


# ---------------------------------------------------------------- an archive that is not good

OUT = {
    "../out": tgz({"birds/a": b"1", "../out": b"2"}),
    "birds/../../out": tgz({"birds/a": b"1", "birds/../../out": b"2"}),
    "/elsewhere/out": tgz({"birds/a": b"1", "/elsewhere/out": b"2"}),
    "birds/inside": tgz({"birds/a": b"1"}, link("birds/inside", "a")),
    "birds/soft": tgz({"birds/a": b"1"}, link("birds/soft", "../../../out")),
    "birds/absolute": tgz({"birds/a": b"1"}, link("birds/absolute", "/etc/passwd")),
    "birds/hard": tgz({"birds/a": b"1"}, link("birds/hard", "../../out", tarfile.LNKTYPE)),
    "birds/device": tgz({"birds/a": b"1"}, link("birds/device", "", tarfile.CHRTYPE)),
    "birds/pipe": tgz({"birds/a": b"1"}, link("birds/pipe", "", tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("name", OUT)
def test_a_member_that_leads_out_or_is_no_plain_file_raises(name, server, place, tmp_path):
    server.body = OUT[name]
    error = check_refused(server.url, "would leave the folder|is neither a plain file nor a folder", place)
    assert repr(name) in str(error)
    assert not list(tmp_path.rglob("out"))


@pytest.mark.parametrize("body", [b"", b"<html>Sign in</html>", gzip.compress(b"no tar " * 1000, mtime=0), BIRDS[:-20]])
def test_what_is_no_archive(body, server, place):
    server.body = body
    check_refused(server.url, "is not a complete .tgz archive", place)


@pytest.mark.parametrize(("files", "names"), [({"fish/a": b"1", "README": b"2"}, "README, fish"), ({}, "nothing")])
def test_an_archive_of_something_else(files, names, server, place):
    server.body = tgz(files)
    check_refused(server.url, f"must have one folder named birds at its top, got {names}", place)


def test_unpacking_does_not_depend_on_the_filters_of_tarfile(server, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")  # as in Python 3.10.11
    monkeypatch.setattr(tarfile.TarFile, "extractall", None)
    monkeypatch.setattr(tarfile.TarFile, "extract", None)
    assert (untar_data(server.url) / "labels.csv").read_bytes() == b"name,label\n"


# ---------------------------------------------------------------- a folder that is not good


def test_a_home_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setenv("MINIFAST_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(DownloadError, match="cannot be written"):
        untar_data(server.url)
    assert server.asked == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_home(server, place):
    (place / "data").mkdir(parents=True)
    (place / "data").chmod(0o555)
    check_refused(server.url, "cannot be written", place)
    (place / "data").chmod(0o755)


def test_a_full_disk(server, place, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    check_refused(server.url, "cannot be written .No space left on device", place)


def test_a_file_in_the_place_of_the_folder(server, place):
    (place / "data").mkdir(parents=True)
    (place / "data" / "birds").write_text("no folder")
    check_refused(server.url, "must be a folder, but it is a file", place)
    assert server.asked == []


def test_an_empty_folder_is_replaced(place):
    for folder in ("new/a", "target"):
        (place / folder).mkdir(parents=True)
    urls.move_into_place(place / "new", place / "target")
    assert tree(place) == {"target", "target/a"}


# ---------------------------------------------------------------- a user, and a second process


def test_ctrl_c_while_unpacking(server, place, monkeypatch):
    def ctrl_c(content, file):
        file.write(content.read(10))
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        untar_data(server.url)
    assert tree(place) == set()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.slow
def test_ctrl_c_while_downloading(server, place):
    def answer(request):
        request.head(len(BIRDS))
        request.wfile.write(BIRDS[:100_000])
        process.send_signal(signal.SIGINT)
        server.over.wait(5)

    server.answer = answer
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from minifast.data.download import untar_data
try:
    untar_data(sys.argv[1])
except KeyboardInterrupt:
    print("heard")
"""
    process = subprocess.Popen([sys.executable, "-c", code, server.url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.communicate(timeout=60)[0] == "heard\n"
    assert tree(place) == set()


@pytest.mark.parametrize("force", [False, True])
def test_two_at_the_same_moment_both_end_well(force, server, place, monkeypatch):
    together, move, ends = threading.Barrier(2), urls.move_into_place, []

    def move_together(*args, **kwargs):
        together.wait(5)
        move(*args, **kwargs)

    monkeypatch.setattr(urls, "move_into_place", move_together)

    def fetch():
        ends.append(untar_data(server.url, force_download=force))

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [place / "data" / "birds"] * 2
    assert {p.name for p in (place / "data").iterdir()} == {"birds"}
    assert {p.name for p in ends[0].iterdir()} == {"labels.csv", "train"}


@pytest.mark.parametrize("force", [False, True])
def test_of_several_processes_of_torchrun_one_downloads(force, server, place, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    if force:
        untar_data(server.url)
    ends, before, answer = [], len(server.asked), server.answer

    def answer_slowly(request):
        time.sleep(0.3)  # the others have asked for the data by then
        answer(request)

    server.answer = answer_slowly
    threads = [
        threading.Thread(target=lambda: ends.append(untar_data(server.url, force_download=force))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [place / "data" / "birds"] * 3
    assert len(server.asked) == before + 1
    assert {p.name for p in (place / "data").iterdir()} == {"birds"}
    assert not list(temporary.iterdir())


def test_where_another_was_faster_its_folder_is_used(tmp_path):
    for name in ("mine", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "whose").write_text(name)
    urls.move_into_place(tmp_path / "mine", tmp_path / "target")
    assert (tmp_path / "target" / "whose").read_text() == "target"


def test_a_replacement_that_fails_puts_the_old_back(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").touch()
    with pytest.raises(FileNotFoundError):
        urls.move_into_place(tmp_path / "missing", tmp_path / "target", aside=tmp_path / "old")
    assert tree(tmp_path) >= {"target", "target/a"}
    assert not (tmp_path / "old").exists()
