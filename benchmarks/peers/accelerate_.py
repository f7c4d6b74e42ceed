"""Accelerate: two epochs of the 1cycle policy on MNIST_SAMPLE, from tensors."""

import torch
from accelerate import Accelerator
from common import BATCH, EPOCHS, adamw, model, one_cycle, tensors
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
train = DataLoader(TensorDataset(*tensors("train")), BATCH, shuffle=True, drop_last=True)
valid = DataLoader(TensorDataset(*tensors("valid")), BATCH)
network = model()
optimizer = adamw(network.parameters())
schedule = one_cycle(optimizer, EPOCHS * len(train))
network, optimizer, train, valid, schedule = accelerator.prepare(network, optimizer, train, valid, schedule)
for epoch in range(EPOCHS):
    network.train()
    for x, y in train:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(x), y)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
    network.eval()
    total, correct, n = 0.0, 0, 0
    with torch.no_grad():
        for x, y in valid:
            outputs, targets = accelerator.gather_for_metrics((network(x), y))
            total += functional.cross_entropy(outputs, targets, reduction="sum").item()
            correct += (outputs.argmax(1) == targets).sum().item()
            n += len(targets)
    accelerator.print(epoch, loss.item(), total / n, correct / n)
