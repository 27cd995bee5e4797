"""One idea a file: pure functions of tensors."""
