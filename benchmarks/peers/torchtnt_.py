"""torchtnt: two epochs of the 1cycle policy on MNIST_SAMPLE, from tensors."""

import torch
from common import BATCH, EPOCHS, adamw, model, one_cycle, tensors
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchtnt.framework.auto_unit import AutoUnit
from torchtnt.framework.fit import fit


class Classifier(AutoUnit):
    """The model with its loss and optimizer; prints the validation of each epoch."""

    def compute_loss(self, state, data):  # noqa: D102
        x, y = data
        output = self.module(x)
        return functional.cross_entropy(output, y), output

    def configure_optimizers_and_lr_scheduler(self, module):  # noqa: D102
        optimizer = adamw(module.parameters())
        return optimizer, one_cycle(optimizer, EPOCHS * len(train))

    def on_eval_start(self, state):  # noqa: D102
        self.total, self.correct, self.n = 0.0, 0, 0

    def on_eval_step_end(self, state, data, step, loss, outputs):  # noqa: D102
        y = data[1]
        self.total += loss.item() * len(y)
        self.correct += (outputs.argmax(1) == y.to(outputs.device)).sum().item()
        self.n += len(y)

    def on_eval_end(self, state):  # noqa: D102
        print(self.total / self.n, self.correct / self.n)


torch.manual_seed(0)
train = DataLoader(TensorDataset(*tensors("train")), BATCH, shuffle=True, drop_last=True)
valid = DataLoader(TensorDataset(*tensors("valid")), BATCH)
unit = Classifier(module=model(), device=torch.device("cpu"), step_lr_interval="step")
fit(unit, train_dataloader=train, eval_dataloader=valid, max_epochs=EPOCHS)
