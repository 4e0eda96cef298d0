"""Programs as folders: saved whole or not at all, checked before they are believed, verified
anywhere.

An artifact is a folder of two files. ``manifest.json`` has the graphs as data, the recipe, the plan
and the origins of every plug-in that had a part, and a sha256 of itself and of every tensor.
``tensors.safetensors`` has the tensors, and golden inputs and results that :func:`verify` replays.
Nothing in either is code, and nothing names any.
"""

from .reading import load
from .summary import ArtifactInfo, LayerSize, OriginInfo, inspect_artifact
from .verification import LayerCheck, Verification, verify
from .writing import save

__all__ = [
    "ArtifactInfo",
    "LayerCheck",
    "LayerSize",
    "OriginInfo",
    "Verification",
    "inspect_artifact",
    "load",
    "save",
    "verify",
]
