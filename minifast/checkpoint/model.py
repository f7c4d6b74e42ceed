"""Save and load the weights of a model and the state of its optimizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast.distributed.exchange import from_first
from minifast.distributed.sharding import like_model, whole
from minifast.errors import DataError, MinifastError
from minifast.training.groups import loss_module, loss_parameters
from minifast.training.lazy import initialize_lazy
from minifast.training.parallel import group_of
from minifast.training.same_weights import check_same_weights
from minifast.training.torch_optimizer import OptimizerStateError
from minifast.utils import files, safetensors_files
from minifast.utils.checks import shortlist
from minifast.utils.compiled import plain_name, unwrap_compiled

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


def model_file(learn: Learner, file: str | Path | IO[bytes], anywhere: bool = False) -> Path | IO[bytes]:
    """Return an open file as it is, and a name as a path in the model folder.

    With ``anywhere``, ``file`` may be the path of an existing file too, absolute or from the current folder.
    """
    if not isinstance(file, (str, Path)):
        if not hasattr(file, "read") and not hasattr(file, "write"):
            raise TypeError(f"`file` must be a name, a path or an open file, got {file!r}.")
        return file
    folder = learn.path / learn.model_dir
    if not str(file) or "\0" in str(file) or Path(file).name in ("", ".", ".."):
        raise ValueError(f"`file` must be a file name such as 'model', got {str(file)!r}.")
    has_suffix = Path(file).suffix == safetensors_files.SUFFIX
    target = folder / (file if has_suffix else f"{str(file).removesuffix('.pth')}.pth")
    if anywhere and not target.is_file():
        given = Path(file).expanduser()
        existing = [path for path in (folder / given, given) if path.is_file()]
        is_complete = given.is_absolute() and given.suffix  # so that the error names it as it was given
        return existing[0] if existing else given if is_complete else target
    if not anywhere and not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{file} is outside of {folder}; give a name, and set `model_dir` to use another folder.")
    return target


def save_model(learn: Learner, target: Path | IO[bytes], with_opt: bool | None) -> None:
    """Write what ``Learner.save`` writes; all processes must call it."""
    check_same_weights(learn, group_of(learn), "when it is saved")
    weights_only = safetensors_files.is_safetensors(target)
    instead = f"a {safetensors_files.SUFFIX} file holds the weights of a model alone; save to a .pth file instead."
    if weights_only and with_opt:
        raise ValueError(f"with_opt=True saves the state of the optimizer, but {instead}")
    state = model_state(learn, not weights_only if with_opt is None else with_opt)
    if weights_only and has_parts(state):
        raise ValueError(f"The loss has trained parameters, but {instead}")
    from_first(lambda: files.write(state, target), group_of(learn))


def model_state(learn: Learner, with_opt: bool) -> dict[str, Any]:
    """Return what ``Learner.save`` writes: the model's state, with the optimizer's state if there is an optimizer."""
    learn.model = unwrap_compiled(learn.model)
    initialize_lazy(learn)
    state = learn.model.state_dict()
    others = {"opt": learn.opt.state_dict()} if with_opt and learn.opt is not None else {}
    loss = loss_module(learn.loss_func)
    if loss is not None and loss_parameters(learn.model, learn.loss_func):  # they are trained too
        others["loss"] = loss.state_dict()
    values: dict[str, Any] = whole({"model": state, **others} if others else state, group_of(learn))
    return values


def is_with_opt(state: Any) -> bool:
    """Return whether ``state`` holds both a model's and an optimizer's state, as ``model_state`` returns them."""
    return has_parts(state) and "opt" in state


def has_parts(state: Any) -> bool:
    """Return whether ``state`` holds the state of more than a model."""
    return isinstance(state, dict) and set(state) in ({"model", "opt"}, {"model", "loss"}, {"model", "opt", "loss"})


def load_model(
    learn: Learner,
    file: Path | IO[bytes],
    device: torch.device | str,
    strict: bool,
    with_opt: bool | None,
    trust: bool = False,
) -> None:
    """Load what ``Learner.save`` wrote into the learner; on an error, nothing changes."""
    state = files.read(file, device, trust=trust)
    if isinstance(state, nn.Module):  # a pickled model, which needs trust
        state = state.state_dict()
    both = is_with_opt(state)
    if with_opt and not both:
        raise MinifastError(f"{file} holds no optimizer state; load it with with_opt=False.")
    learn.model = model = unwrap_compiled(learn.model)
    initialize_lazy(learn)
    loss = loss_module(learn.loss_func) if has_parts(state) and "loss" in state else None
    before = copy.deepcopy((model.state_dict(), loss.state_dict() if loss is not None else {}))
    opt = learn.opt
    try:
        weights = {plain_name(name): value for name, value in weights_in(state, file).items()}
        if all(name.startswith("module.") for name in weights) and not weights.keys() & before[0].keys():
            weights = {name.removeprefix("module."): value for name, value in weights.items()}  # of nn.DataParallel
        weights = {**weights, **_other_names(model, weights)}
        model.load_state_dict(like_model(weights, model), strict=strict)
        if loss is not None:
            loss.load_state_dict(state["loss"], strict=strict)
        if both and with_opt is not False:
            if opt is None:
                learn.create_opt(3e-3, learn.wd)
            # A fit sets lr and wd; in a new optimizer they show those of the file until then.
            learn.opt.load_state_dict(state["opt"], keep=("mom",) if opt is None else ("lr", "mom", "wd"))
    except (RuntimeError, TypeError, AttributeError, KeyError, OptimizerStateError) as error:
        learn.opt = opt
        model.load_state_dict(before[0])
        if loss is not None:
            loss.load_state_dict(before[1])
        if isinstance(error, OptimizerStateError):
            raise DataError(
                f"{file} holds the state of another optimizer: {error} Load it with with_opt=False."
            ) from error
        reason = " ".join(str(error).split())
        raise DataError(f"{file} belongs to another model than this learner's: {reason}") from error


def weights_in(state: Any, file: Any) -> dict[str, Any]:
    """Return the state dict of a model in what a file holds.

    Raises:
        DataError: it holds none. A dict that has one as an entry, as many training scripts write it, is named.
    """
    if has_parts(state):
        return state["model"]  # type: ignore[no-any-return]
    if isinstance(state, dict) and (not state or any(isinstance(value, Tensor) for value in state.values())):
        return state
    holds = f"a {type(state).__name__}"
    if isinstance(state, dict):
        holds = f"a dict with {shortlist(state)}"
        inner = [name for name, value in state.items() if isinstance(value, dict) and _is_state_dict(value)]
        if inner:
            raise DataError(
                f"{file} holds {holds}, not a state dict of a model; write that alone into a file: "
                f"torch.save(torch.load({str(file)!r})[{inner[0]!r}], 'weights.pth')"
            )
    raise DataError(
        f"{file} holds {holds}, not a state dict of a model; save one with torch.save(model.state_dict(), …)."
    )


def _is_state_dict(value: dict[Any, Any]) -> bool:
    return bool(value) and all(isinstance(one, Tensor) for one in value.values())


def _other_names(model: nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the tensors of a model that ``weights`` has under another name, such as tied weights."""
    own = model.state_dict(keep_vars=True)
    values = {id(tensor): weights[name] for name, tensor in own.items() if name in weights}
    return {name: values[id(one)] for name, one in own.items() if name not in weights and id(one) in values}
