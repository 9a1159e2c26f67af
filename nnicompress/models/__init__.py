"""Shipped models: plain torch files, and doors to the models of other libraries."""
