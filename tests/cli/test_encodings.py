"""Output works where the encoding lacks characters: JSON stays JSON, tables and errors are escaped."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import minifast
from minifast.utils.text import can_write, write_text

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
    run(folder, {}, "train", "images", "--epochs", "1", "--lr", "0.01", "--bs", "8", "--out", "out")
    return folder


def run(folder, environment, *arguments):
    base = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    base |= {"PYTHONPATH": str(ROOT), "MINIFAST_HOME": str(folder / "home"), "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run([sys.executable, "-m", "minifast", *arguments], cwd=folder, env=base, capture_output=True)


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {}])
def test_json_has_the_names_in_any_encoding(place, environment):
    image = f"images/valid/{NAMES[1]}/0\xe9.png"
    done = run(place, environment, "predict", "out/export.pkl", image, "--json")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout.decode(environment.get("PYTHONIOENCODING", "utf-8")))
    assert record["image"] == image
    assert sorted(record["probabilities"]) == sorted(NAMES)


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"NO_COLOR": "1", "COLUMNS": "20"}])
def test_tables_and_errors_come_out(place, environment):
    images = [f"images/valid/{name}/0\xe9.png" for name in NAMES]
    done = run(place, environment, "predict", "out/export.pkl", *images)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    done = run(place, environment, "train", f"nowhere{NAMES[0]}")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"nowherek" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_what_can_be_written_is_known_before(encoding):
    for text in ("plain", *NAMES, "\u2588"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        write_text(text, stream=stream)
        written = stream.buffer.getvalue().decode(encoding).strip()
        assert (written == text) is can_write(text, stream)
