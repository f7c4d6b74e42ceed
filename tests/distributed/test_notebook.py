"""``launch`` in a notebook: functions of its cells, their errors and results, Ctrl-C, and the end of all processes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from test_processes import environment

pytestmark = pytest.mark.slow

SETUP = """
import os, signal, sys, time, torch, minifast
from minifast import *

torch.set_num_threads(1)
x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))

def train(what=""):
    set_seed(0)
    data = TensorDataBunch.from_arrays(x, x[:, 0] > 0, seed=0, bs=32, device="cpu")
    learn = Learner(data, simple_ann(8, 2), metrics=[accuracy])
    if what == "fail" and os.environ["RANK"] == "1":
        raise ValueError("bad sample 40")
    if what == "exit":
        os._exit(7)
    if what == "kill" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    learn.fit(1, 1e-2)
    if what == "function":
        return lambda: 1
    if what == "sleep":
        open("started " + os.environ["RANK"], "w").write(str(os.getpid()))
        time.sleep(600)
    return learn.validate()

def error_of(what):
    try:
        minifast.launch(train, what, nproc=2)
    except (MinifastError, KeyboardInterrupt) as error:
        return type(error).__name__ + ": " + str(error)

handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
alone = train()
"""
RESULT = """
result = minifast.launch(train, nproc=2)
torch.testing.assert_close(torch.tensor(result), torch.tensor(alone), rtol=1e-5, atol=1e-6)
"""
ERRORS = """
message = error_of("fail")
assert message.startswith("MinifastError: Process 1 of 2 failed: ValueError: bad sample 40 (line "), message
assert message.endswith(", in train)"), message
assert "exited with 7, before the function returned." in error_of("exit")
assert error_of("kill") == "MinifastError: Process 1 of 2 was ended by SIGKILL, before the function returned."
message = error_of("function")
assert "Process 0 of 2 failed: MinifastError: The function returned a function, which cannot be sent" in message
"""
INTERRUPT = """
assert error_of("sleep") == "KeyboardInterrupt: "
"""
END = """
assert train() == alone
assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
"""


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_launch_in_a_notebook(tmp_path, monkeypatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    cells = [nbformat.v4.new_code_cell(cell) for cell in (SETUP, RESULT, ERRORS, INTERRUPT, END)]
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(cells=cells), timeout=500, resources={"metadata": {"path": str(tmp_path)}}
    )
    started = [tmp_path / f"started {rank}" for rank in (0, 1)]

    async def interrupt() -> None:
        while not all(file.exists() and file.read_text() for file in started):
            await asyncio.sleep(0.1)
        await client.km.interrupt_kernel()

    async def run() -> None:
        task = asyncio.ensure_future(interrupt())
        try:
            await client.async_execute()  # raises the error of a cell
        finally:
            task.cancel()

    asyncio.run(run())
    assert not [file for file in started if Path("/proc", file.read_text()).exists()]
    shown = "".join(str(output.get("text", "")) for output in cells[1].outputs)
    assert "train_loss" in shown  # a line for each epoch, where forks cannot show a bar
    assert os.environ.get("RANK") is None
