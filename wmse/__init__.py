"""Whitening for self-supervised representation learning (W-MSE), taught and reproduced."""

__version__ = "0.1.0"
