"""The sides of `python -m benchmarks.accuracy`: how each is calibrated, trained and predicts."""
