"""How image files become tensors, in settings: size, crop, channels and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnicompress.data.imagefolder import MEAN, STD
from nnicompress.data.roles import require


class ImageProcessing:
    """The short side resized to `resize` (8/7 of `image_size` where None), the centre cropped, values normalised.

    `mean` and `std` are of values in [0, 1], one for each of `in_channels` (1: grey, 3: RGB; None: ImageNet's).
    """

    def __init__(
        self,
        image_size: int,
        resize: int | None,
        in_channels: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        require(image_size >= 1, "image_size", f"{image_size} is not a positive number of pixels")
        self.resize = round(image_size * 8 / 7) if resize is None else resize
        require(self.resize >= image_size, "resize", f"{self.resize} is smaller than image_size ({image_size})")
        require(in_channels in (1, 3), "in_channels", f"{in_channels} is neither 1 (grey) nor 3 (RGB)")
        self.mean = tuple(mean) if mean is not None else MEAN if in_channels == 3 else (0.5,)
        self.std = tuple(std) if std is not None else STD if in_channels == 3 else (0.25,)
        for key, values in (("mean", self.mean), ("std", self.std)):
            require(len(values) == in_channels, key, f"{len(values)} numbers for {in_channels} channels")
        require(all(value > 0 for value in self.std), "std", f"{list(self.std)} are not all positive")
        self.input_shape = (in_channels, image_size, image_size)

    def facts(self) -> dict[str, Any]:
        """Plain values, for a data object's `preprocessing`."""
        channels, size, _ = self.input_shape
        return {
            "pixels": f"8-bit {'RGB' if channels == 3 else 'grey'}, 0 to 255",
            "resize": {"short_side": self.resize, "interpolation": "bilinear"},
            "crop": {"centre": size},
            "divide_by": 255.0,
            "mean": list(self.mean),
            "std": list(self.std),
        }
