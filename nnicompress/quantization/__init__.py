"""Quantization in simulation: schemes, observers, fake quantizers, and the quantizer that trains with them."""
