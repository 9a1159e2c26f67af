"""Sweeps: what became of each point, whichever process ran it, and searches with Optuna."""
