"""The numbers of the report: size, multiply-accumulates, latency, memory, accuracy."""
