"""Unpacking of archives: whatever an archive holds, nothing is written outside its folder, and no half of it stays."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minifast.data.download as download
from minifast import DownloadError
from minifast.data import untar_data

URL = "https://example.org/birds"
FILE, FOLDER, SYMLINK, HARDLINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def member(name: str, kind: bytes = FILE, to: str = "", content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    info.size = len(content) if kind == FILE else 0
    return info, content


def archive(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0)


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Return a function that puts an archive where ``untar_data`` finds it; the folders around hold nothing else."""
    home = tmp_path / "a" / "b" / "home"
    (home / "data").mkdir(parents=True)
    monkeypatch.setenv("MINIFAST_HOME", str(home))
    monkeypatch.chdir(tmp_path)

    def put(content: bytes) -> set[str]:
        (home / "data" / "birds.tgz").write_bytes(content)
        return files(tmp_path)

    return put


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def check_refused(put, tmp_path: Path, content: bytes, match: str) -> None:
    before = put(content)
    with pytest.raises(DownloadError, match=match):
        untar_data(URL)
    assert files(tmp_path) == before


def escape_by_long_paths() -> bytes:
    """Links whose resolved path is longer than PATH_MAX, where some releases of Python stop resolving."""
    long, members, path = "d" * 247, [], ""
    for step in "abcdefghijklmnop":
        members.append(member(f"birds/{path}{long}", FOLDER))
        members.append(member(f"birds/{path}{step}", SYMLINK, long))
        path += f"{step}/"
    link = "birds/" + "/".join("abcdefghijklmnop") + "/" + "l" * 254
    members.append(member(link, SYMLINK, "../" * 16))
    members.append(member("birds/escape", SYMLINK, link.removeprefix("birds/") + "/../../../.."))
    members.append(member("birds/hard", HARDLINK, "birds/escape/out"))
    members.append(member("birds/escape/out", content=b"outside"))
    return archive(member("birds/a"), *members)


ATTACKS = {
    "long paths": escape_by_long_paths(),
    "chain": archive(
        member("birds/x", SYMLINK, "."), member("birds/y", SYMLINK, "x/.."), member("birds/y/../out", content=b"out")
    ),
    "link then file": archive(member("birds/up", SYMLINK, "../../.."), member("birds/up/out")),
    "folder is a link": archive(member("birds", SYMLINK, "/var"), member("birds/out")),
    "hard link then file": archive(member("birds/h", HARDLINK, "../../../home"), member("birds/h")),
    "hard link to a member": archive(member("birds/a"), member("birds/b", HARDLINK, "birds/a")),
    "link inside": archive(member("birds/a"), member("birds/b", SYMLINK, "a")),
    "absolute": archive(member("/out"), member("birds/a")),
    "absolute folder": archive(member("/out/b", FOLDER), member("birds/a")),
    "up": archive(member("birds/../../out")),
    "up folder": archive(member("birds/../..", FOLDER)),
    "up inside": archive(member("birds/a/../b")),
    "backslash": archive(member("birds\\..\\..\\out")),
    "device": archive(member("birds/d", tarfile.CHRTYPE)),
    "block device": archive(member("birds/d", tarfile.BLKTYPE)),
    "pipe": archive(member("birds/p", tarfile.FIFOTYPE)),
    "unknown": archive(member("birds/s", b"Z", to="/etc")),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_links_devices_and_paths_that_lead_out_raise_and_leave_nothing(name, put, tmp_path):
    check_refused(put, tmp_path, ATTACKS[name], r"would leave the folder|is neither a plain file nor a folder")


def test_a_file_that_is_also_a_folder_raises(put, tmp_path):
    check_refused(put, tmp_path, archive(member("birds/a"), member("birds/a/b")), "is both a file and a folder")
    check_refused(put, tmp_path, archive(member("birds/a/b"), member("birds/a")), "is both a file and a folder")
    check_refused(put, tmp_path, archive(member(".")), "is both a file and a folder")


def test_a_path_that_is_too_long_raises_and_leaves_nothing(put, tmp_path):
    check_refused(put, tmp_path, archive(member("birds/" + "/".join(["d" * 200] * 30))), "File name too long")


def test_a_file_larger_than_the_free_space_raises_before_it_is_written(put, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 8, 2))
    check_refused(put, tmp_path, archive(member("birds/a", content=b"123")), r"No space left for birds/a.* 3 bytes")


def test_a_sparse_file_raises(put, tmp_path):
    info, _ = member("birds/sparse")
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "birds/sparse",
        "GNU.sparse.realsize": str(2**40),
    }  # fmt: skip
    content = b"1\n0\n1\n".ljust(512, b"\0") + b"x"
    info.size = len(content)
    check_refused(put, tmp_path, archive((info, content)), "is neither a plain file nor a folder")


def test_plain_files_and_folders_come_with_their_times(put):
    dated, content = member("birds/train/a.png", content=b"123")
    dated.mtime = 1_234_567_890
    strange = member("birds/b")
    strange[0].mtime = 1e300
    put(archive(member("birds", FOLDER), member("birds/empty", FOLDER), (dated, content), strange, member("./birds/c")))
    folder = untar_data(URL)
    assert files(folder) == {"empty", "train", "train/a.png", "b", "c"}
    assert (folder / "train" / "a.png").read_bytes() == b"123"
    assert (folder / "train" / "a.png").stat().st_mtime == 1_234_567_890


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_that_are_not_utf_8_are_unpacked(put):
    put(archive(member("birds/caf\udce9.png"), form=tarfile.GNU_FORMAT))
    assert [os.fsencode(path.name) for path in untar_data(URL).iterdir()] == [b"caf\xe9.png"]


NAMES = st.lists(st.sampled_from(["birds", "a", "b", "..", ".", "", "up"]), min_size=1, max_size=5).map("/".join)
MEMBERS = st.tuples(NAMES, st.sampled_from([FILE, FILE, FOLDER, SYMLINK, HARDLINK]), NAMES)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MEMBERS, max_size=6))
def test_any_members_are_unpacked_inside_or_not_at_all(put, tmp_path, members):
    before = put(archive(*(member(name, kind, to) for name, kind, to in members)))
    try:
        folder = untar_data(URL)
    except DownloadError:
        assert files(tmp_path) == before
    else:
        written = files(tmp_path) - before
        assert written == {str(path.relative_to(tmp_path)) for path in (folder, *folder.rglob("*"))}
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        shutil.rmtree(folder)


LONG = member("birds/" + "b" * 120)
GOOD = gzip.decompress(archive(member("birds/a"), LONG, member("birds/c/d", content=b"y" * 700)))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4), st.booleans(), st.data())
def test_damaged_archives_raise_or_unpack_inside(put, tmp_path, changes, fix_checksums, data):
    damaged = bytearray(GOOD)
    for position, value in changes:
        damaged[position] = value
    if fix_checksums:  # so that tarfile reads the damaged headers
        for block in range(0, len(damaged) - 511, 512):
            if damaged[block + 257 : block + 262] == b"ustar":
                damaged[block + 148 : block + 156] = b" " * 8
                damaged[block + 148 : block + 156] = b"%06o\0 " % sum(damaged[block : block + 512])
    end = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    before = put(gzip.compress(bytes(damaged[:end]), mtime=0))
    try:
        folder = untar_data(URL)
    except DownloadError:
        assert files(tmp_path) == before
    else:
        assert all(name.startswith(str(folder.relative_to(tmp_path))) for name in files(tmp_path) - before)
        shutil.rmtree(folder)


def test_a_negative_size_ends_with_an_error(put, tmp_path):
    raw = bytearray(GOOD)
    raw[124:136] = b"\xff" * 4 + (2**64 - 1024).to_bytes(8, "big")  # -1024 in base 256
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    check_refused(put, tmp_path, gzip.compress(bytes(raw), mtime=0), "is not a complete \\.tgz archive")


def test_an_http_address_of_a_known_data_set_is_checked_too():
    address = download.URLs.DOGS.replace("https:", "http:")
    assert download._published(f"{address}.tgz") == download.ARCHIVES[download.URLs.DOGS]
    assert all(url.startswith("https:") for url in download.ARCHIVES)
    assert download._published("https://example.org/birds.tgz") is None
