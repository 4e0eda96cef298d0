"""Where and why two executions of one quantized model part.

:func:`compare` runs both over the same inputs and compares the value of every operation, twice. The
first time each side runs freely, so an operation may differ because its inputs do. The second time
every operation of B gets the inputs that A had: what differs then is the operation's own doing, and
:mod:`~qcore.comparison.causes` looks for the reason by computing the operation anew under one
hypothesis after another.
"""

from .comparing import compare
from .records import Cause, Comparison, Difference, OperationComparison

__all__ = ["Cause", "Comparison", "Difference", "OperationComparison", "compare"]
