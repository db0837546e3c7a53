"""laurepro: reproduce *Location-aware Upsampling for Semantic Segmentation* (arXiv 1911.05250)."""

__version__ = "0.1.0"
