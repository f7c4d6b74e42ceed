"""A hand-written loop: two epochs of the 1cycle policy on MNIST_SAMPLE, from tensors in one file."""

import os

import torch

from benchmarks.hand_written_loop import mnist

parts = torch.load(os.environ["MNIST_TENSORS"])
mnist(*(((x.float() / 255).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last), y) for x, y in parts))
