"""The exceptions that qcore raises, one for each kind of cause.

Every error of qcore is a :class:`QcoreError` and also a builtin that fits, so a caller can catch
either. A message says where (layer, file and key, plug-in and version), what was found, what is
allowed, and the cure.
"""

__all__ = [
    "ArtifactError",
    "BackendError",
    "CaptureError",
    "CompilerError",
    "PluginError",
    "QcoreError",
    "QuantizationError",
    "RecipeError",
]


class QcoreError(Exception):
    """Base of every error that qcore raises on purpose."""


class RecipeError(QcoreError, ValueError):
    """A recipe or a configuration says something that can't be done."""


class PluginError(QcoreError, RuntimeError):
    """A plug-in is missing, broken, ambiguous or breaks its contract."""


class QuantizationError(QcoreError, ValueError):
    """A model, a tensor or a range can't be quantized as asked."""


class CaptureError(QuantizationError):
    """The graph of a model, or of a part of it, can't be captured."""


class ArtifactError(QcoreError, ValueError):
    """A saved artifact is missing, malformed, edited, or needs what this machine lacks."""


class BackendError(QcoreError, RuntimeError):
    """A backend can't run a program here, or its contract is not the program's."""


class CompilerError(QcoreError, RuntimeError):
    """C++ sources can't be compiled, or what was compiled can't be loaded."""
