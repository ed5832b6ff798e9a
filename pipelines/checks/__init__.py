"""The checks of `python -m pipelines.doctor`, one module for each part of the outside world."""
