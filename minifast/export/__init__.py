"""Export: write a trained model for inference, and read the file without running code from it.

``learn.export()`` calls ``writer.py``. ``load_learner``, which builds a learner from the file, lives in
``minifast.learner.loading``.
"""
