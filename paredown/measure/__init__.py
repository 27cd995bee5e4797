"""Bytes, MACs, paired latency, quality with intervals, memory: every number that a report shows."""
