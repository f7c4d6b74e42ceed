"""Small helpers that know nothing of training: argument checks, files, random generators, nested tensors.

Nothing here is public. What knows callbacks, models or data lives in the package named after it.
"""
