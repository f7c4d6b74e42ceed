"""``python -m benchmarks [name …]``: run all measurements, or those named, and write what they found."""

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
    "imports": "what importing costs",
    "step": "a step of the loop, and lr_find",
    "mnist": "two epochs of one cycle on MNIST_SAMPLE against the loop by hand",
    "decode": "loading pictures the first time and from the cache",
    "streaming": "reading pictures that do not fit into memory",
    "scaling": "seconds a batch as the data grow",
    "memory": "peak memory",
    "processes": "the whole process against fastai, Lightning, skorch, Keras and Ignite",
    "device": "steps on a CUDA device",
    "finder": "what one cycle reaches at the rate of each of the finder's rules",
    "lost": "what finders leave behind and what kills cost, against fastai and Lightning",
}
WRITTEN = {
    "seeds": "the README's table: one cycle against other schedules over ten seeds",
    "pictures": "the README's two pictures",
    "events": "the README's table of events",
    "notebooks": "the notebooks' outputs",
    "held": "the README's table of what is held, from the tests that hold it",
}
REPORT = Path(__file__).parent / "README.md"
VERSIONS = ("torch", "torchvision", "numpy", "pillow", "fastai", "lightning", "skorch", "keras", "pytorch-ignite")


def machine() -> str:
    """Return date, machine and versions in one line."""
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
    """Run what is named on the command line."""
    listing = "\n".join(f"  {name:10} {what}" for name, what in {**MEASURED, **WRITTEN}.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=f"names:\n{listing}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = [[], *MEASURED, *WRITTEN]
    parser.add_argument("names", nargs="*", choices=choices, metavar="NAME", help="what to run; all by default")
    for name in parser.parse_args().names or [*MEASURED, *WRITTEN]:
        module = importlib.import_module(f"benchmarks.{name}")
        if name in WRITTEN:
            module.main()
        else:
            found = module.report() if hasattr(module, "report") else table(module.rows())
            print(found, flush=True)
            write_part(name, f"{found}\n\n{machine()}", REPORT)


if __name__ == "__main__":
    main()
