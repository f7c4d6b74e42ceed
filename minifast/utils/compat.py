"""Differences between supported versions of Python and torch, each with the version from which its function can go."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compile_in_place(model: nn.Module, compiler: Callable[[Callable[..., Any]], Any]) -> None:
    """Compile a module's forward pass in place, as ``model.compile`` does, with ``compiler``, such as torch.compile.

    Up to torch 2.12, ``Module.compile`` compiles a frame of torch's own file, which its compiler skips: nothing is
    compiled for models built of torch's layers. A frame of this file is not skipped. From torch 2.13 on,
    ``model.compile`` does.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    model._compiled_call_impl = compiler(forward)


def with_later_settings(settings: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """Return the settings of an optimizer with those that its class has in later versions of torch.

    Adam has ``decoupled_weight_decay`` from torch 2.7 on. The function can go with torch 2.6.

    >>> with_later_settings({"eps": 1e-8}, torch.optim.AdamW([nn.Parameter(torch.zeros(1))]))
    {'decoupled_weight_decay': True, 'eps': 1e-08}
    """
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return {"decoupled_weight_decay": isinstance(optimizer, torch.optim.AdamW), **settings}
    return settings


def drop_misnamed_guards(program: Any) -> None:
    """Drop the checks of a traced program that name variable arguments in a way that torch 2.9 cannot resolve.

    They raise a NameError when the program is decomposed or called. torch 2.6 makes no such checks, and torch 2.12
    resolves them. The function can go with torch 2.11.
    """
    if torch.__version__ < "2.12":
        getattr(program, "_guards_code", []).clear()


def wait_before_fork() -> None:
    """Let the threads that exchanged tensors come to rest before worker processes are forked.

    Up to Python 3.11, a process that is forked while another thread enters or leaves the interpreter waits forever, and
    so do all that wait for its batches. Gloo's threads do so shortly after an exchange, when they free its tensors. The
    function can go with Python 3.11.
    """
    if sys.version_info < (3, 12):
        time.sleep(0.02)
