"""Location-aware upsampling and its losses (arXiv 1911.05250, sections 3.1 and 3.2) as plain functions.

The package needs only torch and NumPy, so it can be used in any network.
"""

from __future__ import annotations

from ._warmup import warmup
from .losses import (
    LossMaps,
    location_aware_loss_maps,
    offset_guided_cross_entropy,
    offset_regression_loss,
)
from .upsample import bilinear_upsample, location_aware_upsample

__all__ = [
    "LossMaps",
    "bilinear_upsample",
    "location_aware_loss_maps",
    "location_aware_upsample",
    "offset_guided_cross_entropy",
    "offset_regression_loss",
    "warmup",
]
