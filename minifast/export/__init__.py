"""Export: write a trained model for inference, and check such a file without running code from it.

``learn.export()`` calls ``writer.py``. ``load_learner``, which reads the file and builds a learner from it, lives in
``minifast.learner.loading``.
"""
