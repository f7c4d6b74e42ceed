"""Classify texts with a model of Hugging Face transformers: its dicts are batches, its loss is the loss.

A small BERT with random weights, so that nothing is downloaded. With a network, take
``AutoModelForSequenceClassification.from_pretrained(...)`` and its tokenizer.
"""

import torch
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification

from minifast import *

GOOD, BAD = ["good", "great", "fine", "lovely"], ["bad", "poor", "dull", "awful"]
OTHERS = ["the", "a", "film", "plot", "actor", "was", "is", "very"]
WORDS = ["[PAD]", *GOOD, *BAD, *OTHERS]


def make_texts(n: int) -> list[dict]:
    """Sentences of random words, with one that says the label."""
    samples = []
    for i in range(n):
        length = int(torch.randint(3, 10, ()))
        words = [OTHERS[int(k)] for k in torch.randint(len(OTHERS), (length,))]
        words[int(torch.randint(length, ()))] = (GOOD if i % 2 else BAD)[int(torch.randint(4, ()))]
        samples.append({"text": " ".join(words), "label": i % 2})
    return samples


def tokenize(texts: list[str]) -> BatchEncoding:
    """What a tokenizer of transformers does: numbers, padded to the longest text of the batch."""
    rows = [torch.tensor([WORDS.index(word) for word in text.split()]) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long()})


def collate(samples: list[dict]) -> BatchEncoding:
    batch = tokenize([sample["text"] for sample in samples])
    batch["labels"] = torch.tensor([sample["label"] for sample in samples])
    return batch


set_seed(0)
data = DataBunch.create(
    make_texts(800), make_texts(200), bs=40, collate_fn=collate, seed=0, classes=["bad", "good"], device="cpu"
)
sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
config = BertConfig(vocab_size=len(WORDS), num_labels=2, **sizes)
learn = Learner(data, BertForSequenceClassification(config), metrics=[accuracy])  # no loss_func: the model returns it
learn.fit_one_cycle(4, 5e-3)
learn.interpret().plot_confusion_matrix()
sample = {name: values[0] for name, values in tokenize(["the film was great"]).items()}
print(learn.predict(sample)[0])
assert learn.recorder.metrics[-1][0] > 0.9
