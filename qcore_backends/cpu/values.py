"""What a backend knows of the values of a program before it runs: constants and storage."""

from ..values import constant, storage_of

__all__ = ["constant", "storage_of"]
