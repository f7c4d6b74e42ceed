"""Run the tests on other versions of Python and of the dependencies: ``nox -s lowest``, ``nox -s tests-3.12``.

Each session installs into an environment of its own. ``python -m nox --list`` lists the sessions.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.sessions = ["tests-3.11"]
nox.options.reuse_existing_virtualenvs = True

QUICK = ["python", "-m", "pytest", "-q"]


@nox.session(python=["3.10", "3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the tests on the newest dependencies that this Python can install."""
    session.install(".[dev]")
    session.run(*QUICK, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(python=["3.10", "3.11"])
def lowest(session: nox.Session) -> None:
    """Run the tests on the lowest version of each dependency: torch 2.6 and its contemporaries."""
    session.install("-c", "constraints/lowest.txt", ".[test]")
    session.run(*QUICK, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(python="3.11")
@nox.parametrize("torch", ["2.6.0", "2.8.0", "2.10.0", "2.12.0"])
def torches(session: nox.Session, torch: str) -> None:
    """Run the tests on an older torch, with the torchvision that belongs to it."""
    torchvision = {"2.6.0": "0.21.0", "2.8.0": "0.23.0", "2.10.0": "0.25.0", "2.12.0": "0.27.0"}[torch]
    session.install(f"torch=={torch}", f"torchvision=={torchvision}", ".[test]")
    session.run(*QUICK, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(python="3.11")
def build(session: nox.Session) -> None:
    """Build the distributions and check what is in them."""
    session.install("build", "twine", "check-wheel-contents")
    out = Path("dist")
    session.run("python", "-m", "build", "--outdir", str(out))
    session.run("twine", "check", "--strict", *map(str, out.iterdir()))
    session.run("check-wheel-contents", *map(str, out.glob("*.whl")))
