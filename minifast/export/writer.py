"""A trained model leaves: as a file that predicts anywhere, as ONNX, as torch's own export."""

from __future__ import annotations

import copy
import importlib.util
import pickle as pickles
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast.checkpoint.fingerprint import settings_of
from minifast.data.bunch import DataBunch, DatasetType
from minifast.data.images.image_bunch import ImageDataBunch
from minifast.data.loaders import as_images
from minifast.data.transforms import Seeded
from minifast.errors import DataError, MinifastError
from minifast.export.graph import exported, torch_is_quiet, trace
from minifast.losses import LabelSmoothingCrossEntropy, MSELossFlat, activation_name, unwrap_mixup
from minifast.training.snapshot import eval_mode
from minifast.utils import files
from minifast.utils.checks import import_optional
from minifast.utils.tensors import as_arguments, is_plain

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

FORMAT = "minifast export"


VERSION = 1


LOSSES: dict[str, type[nn.Module]] = {
    one.__name__: one
    for one in (
        nn.CrossEntropyLoss, nn.NLLLoss, nn.BCEWithLogitsLoss, nn.BCELoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss,
        nn.HuberLoss, MSELossFlat, LabelSmoothingCrossEntropy,
    )
}  # fmt: skip


FUNCTIONS = {
    "CrossEntropyLoss": functional.cross_entropy,
    "NLLLoss": functional.nll_loss,
    "BCEWithLogitsLoss": functional.binary_cross_entropy_with_logits,
    "BCELoss": functional.binary_cross_entropy,
    "MSELoss": functional.mse_loss,
    "L1Loss": functional.l1_loss,
}


class ModelWithTransforms(nn.Module):
    """A model with what its data do to each batch before, such as normalising."""

    def __init__(self, model: nn.Module, tfms: list[Any]) -> None:
        super().__init__()
        self.model = model
        # What Seeded adds is for transforms that draw random numbers, which no program does.
        self.tfms = [own for tfm in tfms for own in (tfm.tfms if isinstance(tfm, Seeded) else [tfm])]

    def forward(self, *inputs: Any) -> Any:
        """Return the output for inputs as the data set has them."""
        x: Any = inputs[0] if len(inputs) == 1 else inputs
        for tfm in self.tfms:
            x, _ = tfm((x, None))
        return self.model(*as_arguments(x))

    def to_cpu(self) -> ModelWithTransforms:
        """Return a copy on the CPU, in evaluation mode."""
        twin = copy.deepcopy(self).cpu().eval()
        for tfm in twin.tfms:
            held = getattr(tfm, "__dict__", {})
            held.update({name: value.cpu() for name, value in held.items() if isinstance(value, Tensor)})
        return twin


def uncompiled(learn: Learner) -> nn.Module:
    """Return the model that ``torch.compile`` was given, or the model itself."""
    model: nn.Module = getattr(learn.model, "_orig_mod", learn.model)
    return model


def export(learn: Learner, file: str | Path | IO[bytes] = "export.pkl", pickle: bool = False) -> Path | IO[bytes]:
    """Export the model for inference, see ``Learner.export``."""
    target = learn.path / file if isinstance(file, (str, Path)) else file
    model = uncompiled(learn)
    inputs = [x.cpu() for x in as_arguments(raw_inputs(learn.data))]
    pictures = isinstance(learn.data, ImageDataBunch)
    kept: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "torch": str(torch.__version__),
        "pictures": list(inputs[0].shape[2:]) if pictures else None,
        "classes": None
        if learn.data.classes is None
        else [one if is_plain(one) else str(one) for one in learn.data.classes],
        "loss": describe_loss(learn.loss_func),
    }
    with eval_mode(learn.model):
        whole = ModelWithTransforms(model, (learn.data.valid_dl or learn.data.train_dl).tfms).to_cpu()
    if pickle:
        try:
            files.write(kept | {"model": whole}, target)
        except (pickles.PicklingError, AttributeError, TypeError) as error:
            raise MinifastError(f"{type(model).__name__} cannot be pickled: {error}.") from error
        return target
    name = type(model).__name__
    try:
        program = trace(whole, inputs, name)
    except MinifastError as error:
        raise MinifastError(
            f"{error} Keep it with learn.save; or write it with learn.export(pickle=True), which load_learner "
            f"reads with trust=True only, since reading that runs code."
        ) from error
    with torch.no_grad():
        for n in {1, len(inputs[0])}:
            wanted, got = (one(*(x[:n] for x in inputs)) for one in (whole, program))
            if wanted.shape != got.shape or not close(got, wanted):
                raise MinifastError(
                    f"The exported {name} predicts otherwise than {name} itself for a batch of {n}, so nothing was "
                    f"written; it draws random numbers, or does something else that torch.export does not follow."
                )
    files.write(kept | {"program": program.plain()}, target)
    return target


def to_pt2(learn: Learner, file: str | Path | IO[bytes]) -> torch.export.ExportedProgram:
    """Export the model with ``torch.export``, see ``Learner.to_pt2``."""
    with eval_mode(learn.model):
        program = exported(uncompiled(learn), as_arguments(model_inputs(learn.data)))
    with torch_is_quiet():
        if not isinstance(file, (str, Path)):
            torch.export.save(program, file)
            return program
        with files.replacing(learn.path / file) as beside, beside.open("wb") as stream:
            torch.export.save(program, stream)
    return program


def to_onnx(learn: Learner, file: str | Path) -> Path:
    """Export the model as ONNX, see ``Learner.to_onnx``."""
    for package in ("onnx", "onnxscript"):
        import_optional(package, "ONNX", "minifast[onnx]")
    model = uncompiled(learn)
    inputs = [x.cpu() for x in as_arguments(model_inputs(learn.data))]
    with eval_mode(model):
        twin = copy.deepcopy(model).cpu()
    found = exported(twin, inputs)
    try:
        with torch_is_quiet():
            written = torch.onnx.export(found, dynamo=True, verbose=False)
    except Exception as error:  # whatever torch's exporter meets
        raise MinifastError(
            f"torch cannot write {type(model).__name__} as ONNX: {' '.join(str(error).split())[:300]}"
        ) from error
    if written is None:
        raise MinifastError(f"torch wrote nothing for {type(model).__name__}.")
    target = learn.path / file
    with files.replacing(target) as beside:
        written.save(str(beside))
        if importlib.util.find_spec("onnxruntime") is not None:
            check_onnx(beside, twin, inputs)
    return target


def check_onnx(file: Path, model: nn.Module, inputs: list[Tensor]) -> None:
    """Refuse an ONNX file that predicts otherwise than the model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    with torch.no_grad():
        for n in {1, len(inputs[0])}:
            wanted = as_arguments(model(*(x[:n] for x in inputs)))
            got = session.run(None, {name: x[:n].numpy() for name, x in zip(names, inputs, strict=True)})
            if not all(close(torch.from_numpy(one), other) for one, other in zip(got, wanted, strict=True)):
                raise MinifastError(f"onnxruntime predicts otherwise than {type(model).__name__}; nothing was written.")


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are the same but for rounding, of which half precision has more."""
    share = 1e-3 if b.dtype in (torch.float32, torch.float64) else 5e-2
    scale = float(b.abs().nan_to_num().max()) if b.numel() else 0.0
    return torch.allclose(a.float(), b.float(), rtol=share, atol=share * scale, equal_nan=True)


def raw_inputs(data: DataBunch) -> Any:
    """Return the inputs of a batch before the data's transforms; pictures are floats in [0, 1]."""
    loader = data.valid_dl or data.train_dl
    tfms, loader.tfms = loader.tfms, []
    try:
        x = model_inputs(data)
    finally:
        loader.tfms = tfms
    return as_images(x)


def model_inputs(data: DataBunch) -> Any:
    """Return the inputs of a batch as the model takes them."""
    x, _ = data.one_batch(DatasetType.Valid if data.valid_dl else DatasetType.Train, denorm=False, cpu=False)
    if not all(isinstance(one, Tensor) for one in as_arguments(x)):
        raise DataError("The inputs are no tensors, or a tuple or list of them, so the model cannot be exported.")
    return x


def describe_loss(loss_func: Any) -> dict[str, Any]:
    """Return what a file keeps of a loss: its name with how it is set where it is known, and its activation."""
    loss_func = unwrap_mixup(loss_func)
    name = next((name for name in LOSSES if loss_func is FUNCTIONS.get(name) or type(loss_func) is LOSSES[name]), None)
    settings = {}
    if name and isinstance(loss_func, nn.Module):
        settings = settings_of(loss_func) | {key: value.cpu() for key, value in loss_func.named_buffers()}
    called = getattr(loss_func, "__name__", type(loss_func).__name__)
    return {"name": name, "settings": settings, "called": called, "activation": activation_name(loss_func)}
