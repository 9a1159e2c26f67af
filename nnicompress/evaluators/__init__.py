"""The user's training and evaluation, packaged so that a compressor can run it: the contract and its engines."""
