"""Capture a model once; channel groups and multiply-accumulates are read from it."""

from nnicompress.graph.capture import Captured, capture
from nnicompress.graph.groups import find_channel_groups, prunable_fraction
from nnicompress.graph.macs import Macs, count_macs
from nnicompress.graph.widths import ChannelGroups, Removal, Slot, Width

__all__ = [
    "Captured",
    "ChannelGroups",
    "Macs",
    "Removal",
    "Slot",
    "Width",
    "capture",
    "count_macs",
    "find_channel_groups",
    "prunable_fraction",
]
