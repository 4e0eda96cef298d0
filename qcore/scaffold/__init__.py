"""Whole plug-ins to start from: what ``qcore plugins new`` writes.

The templates are data beside this module, read by :class:`string.Template`: ``common`` is for every
kind, and each kind has a folder of its own. ``_package_`` in a path is the import package, and
``.template`` at its end is left out, so that no tool takes a template for code. Nothing here
imports torch.
"""

from .writing import KINDS, distribution_name, new_plugin

__all__ = ["KINDS", "distribution_name", "new_plugin"]
