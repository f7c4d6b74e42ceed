"""Lightning: the tests of ``benchmarks interruptions``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from interruptions_common import BATCH, EPOCHS, LR, SEED, Steps, Subject, datasets, main, network
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch.nn import functional
from torch.utils.data import DataLoader


class Classifier(lightning.LightningModule):
    """The model with its loss and optimizer. It reports the finder's steps, for the finder removes callbacks."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.model = network()
        self.steps: Steps | None = steps
        self.batches = 0

    def training_step(self, batch, index):  # noqa: D102
        x, y = batch
        return functional.cross_entropy(self.model(x), y)

    def validation_step(self, batch, index):  # noqa: D102
        x, y = batch
        self.log("val_loss", functional.cross_entropy(self.model(x), y))

    def on_train_batch_end(self, outputs, batch, index):  # noqa: D102
        if self.steps:
            self.steps(self.trainer.current_epoch, index)

    def create(self) -> Any:
        """Return optimizer and scheduler.

        The number of batches is set: reading ``trainer.estimated_stepping_batches`` advances torch's generator.
        """
        optimizer = torch.optim.AdamW(self.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=1e-2)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=self.batches)

    def configure_optimizers(self):  # noqa: D102
        optimizer, scheduler = self.create()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StepLogger(Callback):
    """Report each step of a fit."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def on_train_batch_end(self, trainer, module, outputs, batch, index):  # noqa: D102
        self._steps(trainer.current_epoch, index)


class Lightning(Subject):
    """A Trainer on a pair of DataLoaders."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        lightning.seed_everything(SEED, verbose=False)
        train, valid = datasets()
        self.folder, self.steps = folder, steps
        self.loaders = DataLoader(train, BATCH, shuffle=True), DataLoader(valid, BATCH)
        self.module = Classifier(steps)
        self.model = self.module.model
        self.trainer = self._trainer(EPOCHS)

    def _trainer(self, epochs: int, *callbacks: Callback) -> lightning.Trainer:
        self.module.batches = epochs * len(self.loaders[0])
        return lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder,
            callbacks=[StepLogger(self.steps), *callbacks],
        )

    def find(self) -> None:
        """Run the learning rate finder without using its suggestion."""
        Tuner(self.trainer).lr_find(self.module, *self.loaders, update_attr=False)

    def train(self, epochs: int) -> None:
        """Train with the 1cycle policy."""
        self.module.steps = None
        self.trainer.fit(self.module, *self.loaders)

    def train_checkpointed(self, epochs: int) -> None:
        """Train with the 1cycle policy and save after each batch; resume from the last file."""
        self.module.steps = None
        keep = ModelCheckpoint(self.folder, every_n_train_steps=1, save_last=True)
        self._trainer(epochs, keep).fit(self.module, *self.loaders, ckpt_path="last")

    def optimizer(self) -> dict[str, Any]:
        """Return state and groups of the trainer's optimizer, or of a new one before training."""
        optimizers = self.trainer.optimizers
        state = (optimizers[0] if optimizers else self.module.create()[0]).state_dict()
        return {"state": state["state"], "groups": state["param_groups"]}


if __name__ == "__main__":
    main(Lightning)
