"""Predict the next character of a text with an LSTM."""

import math

import torch
from torch import nn

from minifast import *

TEXT = "the cat sat on the mat and the dog sat on the log. " * 60
CHARACTERS = sorted(set(TEXT))
LENGTH = 32


class LanguageModel(nn.Module):
    def __init__(self, n: int, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(n, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, n)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(self.embed(tokens))
        return self.head(output).transpose(1, 2)  # (n, classes, time), as cross entropy takes them


def next_token(batch):
    """The target of each position is the character after it."""
    tokens, _ = batch
    return tokens[:, :-1], tokens[:, 1:]


set_seed(0)
tokens = torch.tensor([CHARACTERS.index(character) for character in TEXT])
windows = tokens.unfold(0, LENGTH + 1, 5)
data = TensorDataBunch.from_arrays(windows, torch.zeros(len(windows)), bs=32, seed=0, device="cpu")
learn = Learner(
    data, LanguageModel(len(CHARACTERS)), loss_func=nn.CrossEntropyLoss(), metrics=[accuracy], batch_fn=next_token
)
learn.clip_grad(1.0).fit_one_cycle(4, 1e-2)
print(f"perplexity {math.exp(learn.recorder.val_losses[-1]):.2f}")
assert learn.recorder.metrics[-1][0] > 0.8
