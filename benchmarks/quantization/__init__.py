"""Quantization beside its peers, on the files and in the runtimes. `python -m benchmarks.quantization --help`."""
