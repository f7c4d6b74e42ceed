"""Differences between the supported versions of torch, each with the version from which its function can go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
