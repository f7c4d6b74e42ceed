"""Output works where the encoding lacks characters: JSON stays JSON, tables and errors are escaped."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import leave_out_plots
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minifast
from minifast import cli
from minifast.cli.predict import Prediction
from minifast.utils.text import can_write, real_name, write_text

ROOT = Path(minifast.__file__).parents[1]
NAMES = ("k\xe4se", "\u65e5\u672c")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encodings")
    for part, n in (("train", 16), ("valid", 4)):
        for number, name in enumerate(NAMES):
            (folder / "images" / part / name).mkdir(parents=True)
            for i in range(n):
                image = Image.new("RGB", (8, 8), (200 * number, i, 0))
                image.save(folder / "images" / part / name / f"{i}\xe9.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MINIFAST_HOME", str(folder / "home"))
        leave_out_plots(patch)
        assert cli.main(["train", "images", "--epochs", "1", "--lr", "0.01", "--bs", "8", "--out", "out"]) == 0
    return folder


@pytest.fixture
def run(place, monkeypatch):
    """Run a command in this process, with streams as PYTHONIOENCODING sets them; return its code and what it wrote."""
    monkeypatch.chdir(place)

    def run(encoding, *arguments):
        streams = {
            name: io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, write_through=True)
            for name, errors in (("stdout", "strict"), ("stderr", "backslashreplace"))
        }
        with monkeypatch.context() as patch:
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            code = cli.main(list(arguments))
        return code, *(stream.buffer.getvalue() for stream in streams.values())

    return run


IMAGE = f"images/valid/{NAMES[1]}/0\xe9.png"


def check_json(text):
    (record,) = json.loads(text)
    assert record["image"] == IMAGE
    assert sorted(record["probabilities"]) == sorted(NAMES)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_has_the_names_in_any_encoding(run, encoding):
    code, out, err = run(encoding, "predict", "out/export.pkl", IMAGE, "--json")
    assert code == 0, err
    check_json(out.decode(encoding))


@pytest.mark.slow
def test_json_has_the_names_in_a_process_with_an_encoding_of_its_own(place):
    base = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    base |= {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "minifast", "predict", "out/export.pkl", IMAGE, "--json"]
    done = subprocess.run(command, cwd=place, env=base, capture_output=True)
    assert done.returncode == 0, done.stderr
    check_json(done.stdout.decode("ascii"))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_json_has_the_name_of_a_file_that_the_file_system_encoding_lacks(name):
    escaped = name.encode().decode("ascii", "surrogateescape")
    assert real_name(escaped) == real_name(name) == name
    prediction = Prediction(escaped, "class", ["3"], [1.0], {"3": 1.0})
    assert json.loads(json.dumps(prediction.as_json()))["image"] == name


@pytest.mark.parametrize(("encoding", "environment"), [("ascii", {}), ("utf-8", {"NO_COLOR": "1", "COLUMNS": "20"})])
def test_tables_and_errors_come_out(run, encoding, environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    images = [f"images/valid/{name}/0\xe9.png" for name in NAMES]
    code, out, err = run(encoding, "predict", "out/export.pkl", *images)
    assert code == 0, err
    assert len(out.splitlines()) == 3
    code, _, err = run(encoding, "train", f"nowhere{NAMES[0]}")
    assert code == 2
    assert b"Traceback" not in err
    assert b"nowherek" in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_what_can_be_written_is_known_before(encoding):
    for text in ("plain", *NAMES, "\u2588"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        write_text(text, stream=stream)
        written = stream.buffer.getvalue().decode(encoding).strip()
        assert (written == text) is can_write(text, stream)
