"""Fine-tune a vision transformer of timm on images of 64 × 64 pixels, with a learning rate for each block."""

import timm
import torch

from minifast import *

set_seed(0)
torch.set_num_threads(1)
y = torch.arange(240) % 2  # 0: reddish, 1: bluish
images = torch.rand(240, 3, 64, 64) * 0.5
images[y == 0, 0] += 0.5
images[y == 1, 2] += 0.5
data = TensorDataBunch.from_arrays(images, y, classes=["red", "blue"], bs=8, seed=0, device="cpu")

# A name is enough: vision_learner(data, "vit_tiny_patch16_224"). This one is smaller, and its weights are random.
model = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=48, num_heads=3, pretrained=False)
learn = vision_learner(data, model, pretrained=False, split_on="blocks", metrics=accuracy)  # adapts it to 64 × 64
print(f"{len(learn.layer_groups)} layer groups")
learn.fine_tune(3, 4e-3, lr_mult=3)
assert learn.recorder.metrics[-1][0] > 0.9
