"""Where batches come from: archives, folders of images, tensors in memory."""
