"""pytorch-ignite: two epochs of the 1cycle policy on MNIST_SAMPLE, from tensors."""

from common import BATCH, EPOCHS, adamw, model, one_cycle, tensors
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers.param_scheduler import LRScheduler
from ignite.metrics import Accuracy, Loss
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

train = DataLoader(TensorDataset(*tensors("train")), BATCH, shuffle=True, drop_last=True)
valid = DataLoader(TensorDataset(*tensors("valid")), BATCH)
network = model()
optimizer = adamw(network.parameters())
trainer = create_supervised_trainer(network, optimizer, functional.cross_entropy)
evaluator = create_supervised_evaluator(
    network, metrics={"accuracy": Accuracy(), "loss": Loss(functional.cross_entropy)}
)
trainer.add_event_handler(Events.ITERATION_COMPLETED, LRScheduler(one_cycle(optimizer, EPOCHS * len(train) + 1)))


@trainer.on(Events.EPOCH_COMPLETED)
def report(engine):
    """Validate and print the results."""
    evaluator.run(valid)
    print(engine.state.epoch, engine.state.output, evaluator.state.metrics)


trainer.run(train, max_epochs=EPOCHS)
