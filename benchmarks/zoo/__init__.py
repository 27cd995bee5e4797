"""The zoo: every kind of model, cut at two ratios and compared with its masked original. `python -m benchmarks.zoo --help`."""
