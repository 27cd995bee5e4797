"""Scores of an untrained network, one proxy a file: (model, inputs) -> float, higher is better.

For a warm start only: among the best tenth of NAS-Bench-201 they correlate about zero with accuracy. Each works
on a copy of the model.
"""
