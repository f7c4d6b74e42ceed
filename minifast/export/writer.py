"""Write a trained model for inference: as minifast's own file, as ONNX, or with torch.export."""

from __future__ import annotations

import importlib.util
import pickle as pickles
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast.checkpoint.fingerprint import settings_of
from minifast.data.bunch import DataBunch
from minifast.data.images.image_bunch import ImageDataBunch
from minifast.data.loaders import as_images
from minifast.data.parts import DatasetType
from minifast.data.tabular.tabular_bunch import TabularDataBunch
from minifast.data.transforms import Seeded
from minifast.distributed.exchange import from_first
from minifast.distributed.sharding import is_sharded
from minifast.errors import DataError, MinifastError
from minifast.export.graph import exported, torch_is_quiet, trace
from minifast.losses import LabelSmoothingCrossEntropy, MSELossFlat, activation_name, unwrap_mixup
from minifast.training.parallel import group_of
from minifast.training.same_weights import check_same_weights
from minifast.training.snapshot import eval_mode
from minifast.utils import files
from minifast.utils.checks import check_count, import_optional
from minifast.utils.compiled import unwrap_compiled
from minifast.utils.tensors import as_arguments, is_plain
from minifast.utils.walk import deep_copy

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

FORMAT = "minifast export"
VERSION = 1
LOSSES: dict[str, type[nn.Module]] = {
    loss.__name__: loss
    for loss in (
        nn.CrossEntropyLoss, nn.NLLLoss, nn.BCEWithLogitsLoss, nn.BCELoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss,
        nn.HuberLoss, MSELossFlat, LabelSmoothingCrossEntropy,
    )
}  # fmt: skip
LOSS_FUNCTIONS = {
    "CrossEntropyLoss": functional.cross_entropy,
    "NLLLoss": functional.nll_loss,
    "BCEWithLogitsLoss": functional.binary_cross_entropy_with_logits,
    "BCELoss": functional.binary_cross_entropy,
    "MSELoss": functional.mse_loss,
    "L1Loss": functional.l1_loss,
}


class ModelWithTransforms(nn.Module):
    """A model after the batch transforms of its data, such as normalization."""

    def __init__(self, model: nn.Module, tfms: list[Any]) -> None:
        super().__init__()
        self.model = model
        # Seeded only manages random numbers, which a program does not have.
        self.tfms = [part for tfm in tfms for part in (tfm.tfms if isinstance(tfm, Seeded) else [tfm])]

    def forward(self, *inputs: Any) -> Any:
        """Return the output for the inputs of a batch as the dataset returns them."""
        x: Any = inputs[0] if len(inputs) == 1 else inputs
        for tfm in self.tfms:
            x, _ = tfm((x, None))
        return self.model(*as_arguments(x))

    def to_cpu(self) -> ModelWithTransforms:
        """Return a copy on the CPU, in evaluation mode."""
        if is_sharded(self.model):
            raise MinifastError(
                "A sharded model cannot be exported; save its weights with learn.save, load them into a learner of one "
                "process, and export that."
            )
        copied: ModelWithTransforms = deep_copy(self).cpu().eval()
        for tfm in copied.tfms:
            attributes = getattr(tfm, "__dict__", {})
            attributes.update({name: value.cpu() for name, value in attributes.items() if isinstance(value, Tensor)})
        return copied


def export(learn: Learner, file: str | Path | IO[bytes] = "export.pkl", pickle: bool = False) -> Path | IO[bytes]:
    """Export the model for inference, see ``Learner.export``."""
    target = learn.path / file if isinstance(file, (str, Path)) else file
    group = group_of(learn)
    check_same_weights(learn, group, "when the model is exported")
    model = unwrap_compiled(learn.model)
    inputs = [x.cpu() for x in as_arguments(raw_inputs(learn.data))]
    classes = learn.data.classes
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "torch": str(torch.__version__),
        "pictures": list(inputs[0].shape[2:]) if isinstance(learn.data, ImageDataBunch) else None,  # the image size
        "resize": getattr(learn.data, "resize", None),
        "pixels": list(learn.data.pixels[:3]) if isinstance(learn.data, ImageDataBunch) else None,
        "exact": learn.data.pixels.exact if isinstance(learn.data, ImageDataBunch) else None,
        "table": learn.data.encoder.plain() if isinstance(learn.data, TabularDataBunch) else None,
        "classes": None if classes is None else [name if is_plain(name) else str(name) for name in classes],
        "loss": describe_loss(learn.loss_func),
    }
    with eval_mode(learn.model):
        whole = ModelWithTransforms(model, (learn.data.valid_dl or learn.data.train_dl).tfms).to_cpu()
    if pickle:
        try:
            from_first(lambda: files.write(content | {"model": whole}, target), group)
        except (pickles.PicklingError, AttributeError, TypeError) as error:
            raise MinifastError(f"{type(model).__name__} cannot be pickled: {error}.") from error
        return target
    name = type(model).__name__
    try:
        program = trace(whole, inputs, name)
    except MinifastError as error:
        raise MinifastError(
            f"{error} Save it with learn.save, or pickle it with learn.export(pickle=True), which load_learner reads "
            f"with trust=True only, because reading it runs code."
        ) from error
    with torch.no_grad():
        for n in {1, len(inputs[0])}:
            expected, output = (module(*(x[:n] for x in inputs)) for module in (whole, program))
            if expected.shape != output.shape or not is_close(output, expected):
                raise MinifastError(
                    f"The exported {name} and {name} itself have different outputs for a batch of {n}, so no file was "
                    f"written. The model may use random numbers, or something else that torch.export cannot trace."
                )
    from_first(lambda: files.write(content | {"program": program.plain()}, target), group)
    return target


def to_pt2(learn: Learner, file: str | Path | IO[bytes]) -> torch.export.ExportedProgram:
    """Export the model with ``torch.export``, see ``Learner.to_pt2``."""
    check_same_weights(learn, group_of(learn), "when the model is exported")
    with eval_mode(learn.model):
        program = exported(unwrap_compiled(learn.model), as_arguments(model_inputs(learn.data)))

    def write() -> None:
        with torch_is_quiet():
            if not isinstance(file, (str, Path)):
                torch.export.save(program, file)
                return
            with files.replacing(learn.path / file) as temporary, temporary.open("wb") as stream:
                torch.export.save(program, stream)

    from_first(write, group_of(learn))
    return program


def to_onnx(
    learn: Learner,
    file: str | Path,
    opset_version: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Path:
    """Export the model as ONNX, see ``Learner.to_onnx``."""
    check_same_weights(learn, group_of(learn), "when the model is exported")
    for package in ("onnx", "onnxscript"):
        import_optional(package, "ONNX", "minifast[onnx]")
    model = unwrap_compiled(learn.model)
    inputs = [x.cpu() for x in as_arguments(model_inputs(learn.data))]
    with eval_mode(model):
        cpu_model = deep_copy(model).cpu()
    program = exported(cpu_model, inputs)
    with eval_mode(cpu_model), torch.no_grad():
        n_outputs = len(as_arguments(cpu_model(*inputs)))
    for argument, names, n in (("input_names", input_names, len(inputs)), ("output_names", output_names, n_outputs)):
        if names is not None and (isinstance(names, str) or len(names) != n or len({*names}) != n):
            raise ValueError(f"`{argument}` must be a list of {n} different names, one for each, got {names!r}.")
    if opset_version is not None:
        check_count("opset_version", opset_version)
    try:
        with torch_is_quiet():
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset_version,
                input_names=input_names,
                output_names=output_names,
            )
    except Exception as error:  # torch's exporter raises errors of many types
        raise MinifastError(
            f"torch cannot write {type(model).__name__} as ONNX: {' '.join(str(error).split())[:300]}"
        ) from error
    if onnx_program is None:
        raise MinifastError(f"torch wrote no ONNX file for {type(model).__name__}.")
    found = next(part.version for part in onnx_program.model_proto.opset_import if part.domain in ("", "ai.onnx"))
    if opset_version not in (None, found):
        raise MinifastError(
            f"torch writes {type(model).__name__} with the ONNX operators of version {found}, but not of version "
            f"{opset_version}; give opset_version={found}, or leave it out."
        )
    target = learn.path / file

    def write() -> None:
        with files.replacing(target) as temporary:
            onnx_program.save(str(temporary))
            if importlib.util.find_spec("onnxruntime") is not None:
                check_onnx(temporary, cpu_model, inputs)

    from_first(write, group_of(learn))
    return target


def check_onnx(file: Path, model: nn.Module, inputs: list[Tensor]) -> None:
    """Raise a MinifastError if the outputs of an ONNX file differ from the model's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    with torch.no_grad():
        for n in {1, len(inputs[0])}:
            expected = as_arguments(model(*(x[:n] for x in inputs)))
            outputs = session.run(None, {name: x[:n].numpy() for name, x in zip(names, inputs, strict=True)})
            if not all(is_close(torch.from_numpy(a), b) for a, b in zip(outputs, expected, strict=True)):
                raise MinifastError(
                    f"onnxruntime and {type(model).__name__} itself have different outputs, so no file was written."
                )


def is_close(a: Tensor, b: Tensor) -> bool:
    """Return whether two outputs are equal up to rounding, with a larger tolerance for half precision."""
    tolerance = 1e-3 if b.dtype in (torch.float32, torch.float64) else 5e-2
    scale = float(b.abs().nan_to_num().max()) if b.numel() else 0.0
    return torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def raw_inputs(data: DataBunch) -> Any:
    """Return the inputs of a batch before the batch transforms; images are floats in [0, 1]."""
    loader = data.valid_dl or data.train_dl
    tfms, loader.tfms = loader.tfms, []
    try:
        x = model_inputs(data)
    finally:
        loader.tfms = tfms
    return as_images(x, data.channels)


def model_inputs(data: DataBunch) -> Any:
    """Return the inputs of a batch as the model takes them, after the batch transforms."""
    x, _ = data.one_batch(DatasetType.Valid if data.valid_dl else DatasetType.Train, denorm=False, cpu=False)
    if not all(isinstance(value, Tensor) for value in as_arguments(x)):
        raise DataError("To export the model, its inputs must be a tensor, or a tuple or list of tensors.")
    return x


def describe_loss(loss_func: Any) -> dict[str, Any]:
    """Return a loss in plain values: its name and settings if it is known, and its activation."""
    loss_func = unwrap_mixup(loss_func)
    name = next(
        (name for name in LOSSES if loss_func is LOSS_FUNCTIONS.get(name) or type(loss_func) is LOSSES[name]), None
    )
    settings = {}
    if name and isinstance(loss_func, nn.Module):
        settings = settings_of(loss_func) | {key: value.cpu() for key, value in loss_func.named_buffers()}
    called = getattr(loss_func, "__name__", type(loss_func).__name__)
    return {"name": name, "settings": settings, "called": called, "activation": activation_name(loss_func)}
