"""Pruning: importance, granularity, allocation, schedule, masks, and the pruner that combines them."""
