"""A trained model leaves: as a file that predicts anywhere, as ONNX, as torch's own export."""

from __future__ import annotations

import copy
import importlib.util
import pickle as pickles
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast import files
from minifast.callback import is_plain
from minifast.checkpoint import evaluating
from minifast.data.augment import Seeded
from minifast.data.bunch import DataBunch, DatasetType
from minifast.data.image_bunch import ImageDataBunch
from minifast.data.loader import as_pictures
from minifast.data.losses import MSELossFlat
from minifast.errors import DataError, MinifastError, import_optional
from minifast.identity import settings_of
from minifast.losses import LabelSmoothingCrossEntropy, activation_name, unmixed
from minifast.program import exported, torch_is_quiet, trace
from minifast.state import as_inputs

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


class Whole(nn.Module):
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
        return self.model(*as_inputs(x))

    def on_cpu(self) -> Whole:
        """Return a copy on the CPU, in evaluation mode."""
        twin = copy.deepcopy(self).cpu().eval()
        for tfm in twin.tfms:
            held = getattr(tfm, "__dict__", {})
            held.update({name: value.cpu() for name, value in held.items() if isinstance(value, Tensor)})
        return twin


class Shipping:
    """The part of ``Learner`` that hands the model on."""

    data: DataBunch
    model: nn.Module
    loss_func: Callable[..., Any]
    path: Path

    @property
    def _uncompiled(self) -> nn.Module:
        model: nn.Module = getattr(self.model, "_orig_mod", self.model)  # what torch.compile was given
        return model

    def export(self, file: str | Path | IO[bytes] = "export.pkl", *, pickle: bool = False) -> Path | IO[bytes]:
        """Write what predictions need to ``path/{file}`` or an open file, and return where; ``load_learner`` reads it.

        That is the model with what the data do to a batch (normalising, other ``dl_tfms``), the classes, the size of
        pictures and the loss. The model goes as a program of torch's core operators, made by torch.export, with its
        weights: tensors and plain values, so that reading it runs no code, and needs none of yours. It predicts in
        evaluation mode, with batches of any size on any device, and is not trained; to train on, use ``save`` and
        ``load``. Items must have the shape of the learner's; pictures are brought to their size. Its outputs are
        compared with the model's before the file is written. (fastai v1 pickles the model, and torch.export.load uses
        pickle too: reading such files runs code in them.)

        Args:
            file: a name in ``path``, or an open file.
            pickle: write the model as it is, with pickle, where torch.export cannot follow it. Reading that runs code
                and needs its classes, so ``load_learner`` takes it with ``trust=True`` only.

        Raises:
            MinifastError: torch.export cannot follow the model, or the program predicts otherwise than the model.
            DataError: the data have no batch to follow.

        >>> import io
        >>> from minifast import *
        >>> items = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
        >>> data = DataBunch(items, device="cpu", classes=["no", "yes"])
        >>> learn, file = Learner(data, simple_ann(4, 2)), io.BytesIO()
        >>> _ = learn.export(file)
        >>> _ = file.seek(0)
        >>> category, number, probabilities = load_learner(".", file).predict(torch.zeros(4))
        >>> category in data.classes, probabilities.shape
        (True, torch.Size([2]))
        """
        target = self.path / file if isinstance(file, (str, Path)) else file
        model = self._uncompiled
        inputs = [x.cpu() for x in as_inputs(raw_inputs(self.data))]
        pictures = isinstance(self.data, ImageDataBunch)
        kept: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "torch": str(torch.__version__),
            "pictures": list(inputs[0].shape[2:]) if pictures else None,
            "classes": None
            if self.data.classes is None
            else [one if is_plain(one) else str(one) for one in self.data.classes],
            "loss": described_loss(self.loss_func),
        }
        with evaluating(self.model):
            whole = Whole(model, (self.data.valid_dl or self.data.train_dl).tfms).on_cpu()
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

    def to_pt2(self, file: str | Path | IO[bytes]) -> torch.export.ExportedProgram:
        """Write the model with torch.export to ``path/{file}``, such as ``model.pt2``, and return the program.

        It is for torch's own tools (C++, ahead-of-time compilation): the model alone, in evaluation mode, which takes
        batches of any size as the data give them to it, normalised. Read it with ``torch.export.load``, which uses
        pickle: only a file whose maker you know.

        Raises:
            MinifastError: torch.export cannot follow the model.
        """
        with evaluating(self.model):
            program = exported(self._uncompiled, as_inputs(model_inputs(self.data)))
        with torch_is_quiet():
            if not isinstance(file, (str, Path)):
                torch.export.save(program, file)
                return program
            with files.replacing(self.path / file) as beside, beside.open("wb") as stream:
                torch.export.save(program, stream)
        return program

    def to_onnx(self, file: str | Path) -> Path:
        """Write the model as ONNX to ``path/{file}``, such as ``model.onnx``, and return where.

        It is the model alone, in evaluation mode, which takes batches of any size as the data give them to it,
        normalised. Needs the packages onnx and onnxscript; where onnxruntime is there too, its outputs are compared
        with the model's before the file is written.

        Raises:
            ImportError: a package is missing.
            MinifastError: torch cannot write the model as ONNX, or the outputs differ.
        """
        for package in ("onnx", "onnxscript"):
            import_optional(package, "ONNX", "minifast[onnx]")
        model = self._uncompiled
        inputs = [x.cpu() for x in as_inputs(model_inputs(self.data))]
        with evaluating(model):
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
        target = self.path / file
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
            wanted = as_inputs(model(*(x[:n] for x in inputs)))
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
    return as_pictures(x)


def model_inputs(data: DataBunch) -> Any:
    """Return the inputs of a batch as the model takes them."""
    x, _ = data.one_batch(DatasetType.Valid if data.valid_dl else DatasetType.Train, denorm=False, cpu=False)
    if not all(isinstance(one, Tensor) for one in as_inputs(x)):
        raise DataError("The inputs are no tensors, or a tuple or list of them, so the model cannot be exported.")
    return x


def described_loss(loss_func: Any) -> dict[str, Any]:
    """Return what a file keeps of a loss: its name with how it is set where it is known, and its activation."""
    loss_func = unmixed(loss_func)
    name = next((name for name in LOSSES if loss_func is FUNCTIONS.get(name) or type(loss_func) is LOSSES[name]), None)
    settings = {}
    if name and isinstance(loss_func, nn.Module):
        settings = settings_of(loss_func) | {key: value.cpu() for key, value in loss_func.named_buffers()}
    called = getattr(loss_func, "__name__", type(loss_func).__name__)
    return {"name": name, "settings": settings, "called": called, "activation": activation_name(loss_func)}
