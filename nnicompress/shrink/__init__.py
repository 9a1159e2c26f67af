"""Physically remove what the masks zero, and prove that nothing else changed."""

from nnicompress.shrink.batch_norm import recalibrate_batch_norm
from nnicompress.shrink.config import Rewritten, apply_config, follow_config
from nnicompress.shrink.proof import Proof, prove
from nnicompress.shrink.surgery import shrink

__all__ = [
    "Proof",
    "Rewritten",
    "apply_config",
    "follow_config",
    "prove",
    "recalibrate_batch_norm",
    "shrink",
]
