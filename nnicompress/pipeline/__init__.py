"""Stages in order, in a run folder that survives."""
