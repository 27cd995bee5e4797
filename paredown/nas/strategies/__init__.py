"""One search strategy a file; each holds to the `Strategy` protocol of `strategy.py`."""
