"""Sparsity that stays in shape: one criterion a file, functions of bare matrices."""
