"""Published distillation methods, each by its own definition, for comparison with M-KD's terms under equal conditions.

Over several ranks CWD standardises, and MGD masks, on each rank's own batch; the others are as on one joined batch.
The docstrings give the published loss weights; they are applied only inside a method's own sum of parts.
"""
