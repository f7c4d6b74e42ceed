"""Keras on PyTorch: two epochs of warm-up and cosine on MNIST_SAMPLE, from arrays."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
from common import BATCH, EPOCHS, LR, tensors

x, y = (part.numpy() for part in tensors("train"))
valid_x, valid_y = (part.numpy() for part in tensors("valid"))
batches = EPOCHS * (len(x) // BATCH)
layers = keras.layers
network = keras.Sequential(
    [
        keras.Input((28, 28, 3)),
        *(
            layers.Conv2D(n, 3, strides=2, padding="same", activation="relu", kernel_initializer="he_normal")
            for n in (16, 16, 2)
        ),
        layers.GlobalAveragePooling2D(),
    ]
)
schedule = keras.optimizers.schedules.CosineDecay(
    LR / 25, int(batches * 0.7), alpha=0.0, warmup_target=LR, warmup_steps=int(batches * 0.3)
)
network.compile(
    keras.optimizers.AdamW(schedule, weight_decay=1e-2, beta_2=0.99),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
data = (valid_x.transpose(0, 2, 3, 1), valid_y)
network.fit(x.transpose(0, 2, 3, 1), y, batch_size=BATCH, epochs=EPOCHS, validation_data=data, verbose=2)
