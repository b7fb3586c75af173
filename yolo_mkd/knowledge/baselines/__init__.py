"""Published distillation methods, each by its own definition, for comparison with M-KD's terms under equal conditions.

The docstrings give the published loss weights; they are applied only inside a method's own sum of parts.
"""
