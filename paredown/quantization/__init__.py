"""Linear integer grids: observers, calibration, the fake-quantized model."""
