"""Which layers a model can least do without: each compressed alone, or all but it, and measured."""
