"""Quantization: numbers of a few bits, simulated in training."""
