"""`nnicompress doctor`: takes a user's own evaluator, importance, model or compressor through its contract."""
