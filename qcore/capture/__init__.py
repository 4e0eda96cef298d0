"""Capture: from any ``nn.Module`` to graphs that call its real module instances."""

from .guard import Input, InputGuard
from .ladder import Capture, capture
from .piece import Piece

__all__ = ["Capture", "Input", "InputGuard", "Piece", "capture"]
