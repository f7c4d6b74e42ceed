"""Lightning: two epochs of the 1cycle policy on MNIST_SAMPLE, from tensors."""

import lightning
import torch
from common import BATCH, EPOCHS, adamw, model, one_cycle, tensors
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    """The model with its loss and optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model()

    def training_step(self, batch, index):  # noqa: D102
        x, y = batch
        return functional.cross_entropy(self.model(x), y)

    def validation_step(self, batch, index):  # noqa: D102
        x, y = batch
        output = self.model(x)
        self.log("val_loss", functional.cross_entropy(output, y), prog_bar=True)
        self.log("accuracy", (output.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):  # noqa: D102
        optimizer = adamw(self.parameters())
        scheduler = one_cycle(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


torch.manual_seed(0)
train = DataLoader(TensorDataset(*tensors("train")), BATCH, shuffle=True, drop_last=True)
valid = DataLoader(TensorDataset(*tensors("valid")), BATCH)
trainer = lightning.Trainer(max_epochs=EPOCHS, logger=False, enable_checkpointing=False, accelerator="cpu")
trainer.fit(Classifier(), train, valid)
