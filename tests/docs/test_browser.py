"""JupyterLab in a real browser: the bar while a fit runs, the stop button, and what the saved notebook still shows."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
SETUP = """\
import time, torch
from minifast import *
from torch.utils.data import DataLoader, TensorDataset

class Slowly(Callback):
    def on_batch_end(self):
        time.sleep(0.02)

torch.manual_seed(0)
x = torch.randn(800, 10)
items = TensorDataset(x, (x.sum(1) > 0).long())
data = DataBunch(DataLoader(items, 20), DataLoader(items, 100), device="cpu")
learn = Learner(data, simple_ann(10, 2), metrics=[accuracy], callbacks=[Slowly()])
print("ready")
"""
CELLS = [
    SETUP,
    "learn.fit_one_cycle(100, 1e-2)",
    "learn.fit_one_cycle(2, 1e-2)\nlearn.recorder.plot_lr(show_moms=True)",
]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A JupyterLab over a folder with one notebook, and its address."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here; install it to run this test")
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install 'minifast[browser]'")
    pytest.importorskip("playwright", reason="playwright is not installed: pip install 'minifast[browser]'")
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "fit.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "HOME": str(tmp_path / "jupyter_home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    options = ["--no-browser", "--allow-root", "--IdentityProvider.token="]
    options += [f"--ServerApp.port={port}", f"--ServerApp.root_dir={tmp_path}"]
    command = [sys.executable, "-m", "jupyter", "lab", *options]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def test_bar_stop_button_and_saved_notebook(lab, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    shots = Path(os.environ.get("MINIFAST_SCREENSHOTS", tmp_path))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(f"{lab}/lab/tree/fit.ipynb")
        cells = page.locator(".jp-Notebook .jp-CodeCell")
        expect(cells).to_have_count(3, timeout=60_000)
        expect(page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")).to_be_visible(timeout=60_000)
        cells.nth(0).locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        expect(cells.nth(0).locator(".jp-OutputArea-output")).to_contain_text("ready", timeout=90_000)

        page.keyboard.press("Shift+Enter")
        running = cells.nth(1).locator(".jp-OutputArea")
        expect(running.locator("progress").first).to_be_visible(timeout=30_000)
        expect(running.locator("table tr")).to_have_count(3, timeout=60_000)  # the header and two epochs
        page.screenshot(path=shots / "running.png")
        page.locator("[data-command='notebook:interrupt-kernel']").first.click()
        expect(running).to_contain_text(re.compile(r"Stopped in (the validation of )?epoch \d+"), timeout=30_000)
        expect(running).to_contain_text("KeyboardInterrupt")
        expect(running).to_contain_text("interrupted")
        page.screenshot(path=shots / "stopped.png")

        cells.nth(2).locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        done = cells.nth(2).locator(".jp-OutputArea")
        expect(done.locator("table tr")).to_have_count(3, timeout=60_000)
        expect(done.locator("img")).to_be_visible(timeout=60_000)
        expect(done.locator("progress")).to_have_count(0)
        done.locator("img").scroll_into_view_if_needed()
        page.screenshot(path=shots / "done.png")
        page.keyboard.press("Control+s")
        saved = tmp_path / "fit.ipynb"
        for _ in range(60):
            if saved.read_text().count("image/png"):
                break
            page.wait_for_timeout(500)
        exported = subprocess.run(
            [sys.executable, "-m", "nbconvert", "--to", "html", str(saved)], capture_output=True, text=True
        )
        assert exported.returncode == 0, exported.stderr
        page.goto(f"file://{tmp_path}/fit.html")
        tables = page.locator("table.dataframe, table.fastprogress")  # of fastprogress 1.0 and later
        expect(tables).to_have_count(2)
        expect(tables.nth(1).locator("tr")).to_have_count(3)
        expect(page.locator("img")).to_be_visible()
        page.screenshot(path=shots / "exported.png", full_page=True)
        browser.close()
