"""The record of a run and all that renders it: terminal, HTML, JSON, progress."""
