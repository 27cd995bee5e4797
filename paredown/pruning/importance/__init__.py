"""One criterion a file: free functions over tensors."""
