"""Differences between the supported versions of torch, each with the version from which its function can go."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def compile_in_place(model: nn.Module, **options: Any) -> None:
    """Compile a module's forward pass in place, as ``model.compile(**options)`` does.

    Up to torch 2.12, ``Module.compile`` compiles a frame of torch's own file, which its compiler skips: nothing is
    compiled for models built of torch's layers. A frame of this file is not skipped. From torch 2.13 on,
    ``model.compile`` does.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    model._compiled_call_impl = torch.compile(forward, **options)
