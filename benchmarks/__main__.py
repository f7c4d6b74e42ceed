"""``python -m benchmarks [name …]``: run all measurements, or the named ones, and write their results."""

import argparse
import datetime
import importlib
import os
import platform
from importlib import metadata
from pathlib import Path

from benchmarks.documents import write_part
from benchmarks.timing import table

MEASURED = {
    "imports": "import time",
    "step": "time per training step, and lr_find",
    "first_fit": "the first fit of a process against its second",
    "mnist": "two epochs of the 1cycle policy on MNIST_SAMPLE against a hand-written loop",
    "decode": "loading images for the first time and from the cache",
    "streaming": "reading images that do not fit in memory",
    "scaling": "time per batch as the data grow",
    "memory": "peak memory",
    "frozen": "a frozen backbone",
    "compare": "several runs of compare at the same time",
    "compiled": "learn.compile(): time of compilation, speed gained, graphs compiled in each epoch",
    "parallel": "the ten lines of the README in two processes that train together, against one",
    "processes_step": "a step of two processes against plain DistributedDataParallel",
    "processes": "a whole process against other libraries",
    "device": "steps on a CUDA device",
    "finder": "error rates of the learning rate finder, and accuracy at the learning rate of each rule",
    "command": "minifast train on generated folders: does it always end trained",
    "ants_bees": "transfer learning on photographs, with --data and --weights",
    "tabular": "tables, against fastai and scikit-learn's HistGradientBoosting",
    "interruptions": "state after the finder and cost of a kill, against fastai and Lightning",
}
WRITTEN = {
    "seeds": "the table of the 1cycle policy against other schedules over ten seeds",
    "figures": "the README's two figures",
    "events": "the table of callback events",
    "notebooks": "the outputs of the notebooks",
    "guarantees": "the table of guarantees, from the tests behind them",
    "photographs": "the output of the how-to page about photographs, with --data",
}
REPORT = Path(__file__).parent / "README.md"
VERSIONS = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "fastai",
    "lightning",
    "skorch",
    "keras",
    "pytorch-ignite",
    "accelerate",
    "torchtnt",
    "joblib",
    "scikit-learn",
)


def machine() -> str:
    """Return date, machine and versions as one line."""
    installed = []
    for name in VERSIONS:
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    today = datetime.datetime.now(datetime.timezone.utc).date()
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"{today}, {system}; {', '.join(installed)}."


def main() -> None:
    """Run the measurements named on the command line."""
    listing = "\n".join(f"  {name:15} {what}" for name, what in {**MEASURED, **WRITTEN}.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=f"names:\n{listing}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = [[], *MEASURED, *WRITTEN]
    parser.add_argument("names", nargs="*", choices=choices, metavar="NAME", help="measurements to run; all by default")
    parser.add_argument(
        "--data", help="for ants_bees and photographs: the folder of the images, or a .tgz archive of it"
    )
    parser.add_argument("--weights", help="for ants_bees: the file of weights; by default that of the package")
    options = parser.parse_args()
    for name in options.names or [*MEASURED, *WRITTEN]:
        module = importlib.import_module(f"benchmarks.{name}")
        if name in WRITTEN:
            module.main(*([options.data] if name == "photographs" else []))
        else:
            if name == "ants_bees":
                results = module.report(options.data, options.weights)
            else:
                results = module.report() if hasattr(module, "report") else table(module.rows())
            if results is None:
                continue
            print(results, flush=True)
            write_part(name, f"{results}\n\n{machine()}", REPORT)


if __name__ == "__main__":
    main()
