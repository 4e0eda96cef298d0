"""The side of a measured process: an engine that runs when the parent says so.

The parent writes one JSON object a line to the standard input and reads one back for each, from a
pipe of its own, so that whatever libraries print is no answer:

    {"do": "setup", ...}             makes the engine    {"facts": {...}}
    {"do": "time", "count": 10}      runs it             {"seconds": [...]}
    {"do": "memory"}                                     {"bytes": 123}

What fails is answered by ``{"error": "..."}``. The end of the input ends the process.
"""

import contextlib
import gc
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ..errors import QcoreError

__all__ = ["ANSWERS", "Engine", "serve"]

ANSWERS = "QCORE_BENCHMARK_ANSWERS"
"""The environment variable with the number of the pipe for answers."""


@attrs.frozen(kw_only=True, eq=False)
class Engine:
    """What is measured.

    Args:
        run: one run; returns when the result is there. What it returns is thrown away.
        facts: what the parent should know of it, as JSON can say it.
        memory: the memory that it takes, in bytes, at its peak so far; None: nobody asks for it.
    """

    run: Callable[[], object]
    facts: Mapping[str, Any] = attrs.field(factory=dict)
    memory: Callable[[], int] | None = None


def serve(setup: Callable[[dict[str, Any]], Engine]) -> None:
    """Answers the parent until it closes the pipe; call it as the last thing of the process.

    Args:
        setup: makes the engine from the arguments that the parent sends, and runs it once: the
            first run may compile and allocate.
    """
    server = _Server(setup)
    with os.fdopen(int(os.environ[ANSWERS]), "w", encoding="utf-8") as answers:
        for line in io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8"):
            answer = server.answer(json.loads(line))
            # The parent may have gone; then nobody waits for an answer.
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(answer), file=answers, flush=True)


class _Server:
    def __init__(self, setup: Callable[[dict[str, Any]], Engine]) -> None:
        self.setup = setup
        self.engine: Engine | None = None

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        do = order.pop("do")
        try:
            if do == "setup":
                # The one before has to go first, or both are in memory at once.
                self.engine = None
                self.engine = self.setup(order)
                return {"facts": dict(self.engine.facts)}
            assert self.engine is not None, f"{do} before setup"
            if do == "time":
                return {"seconds": _time(self.engine.run, order["count"])}
            assert do == "memory", do
            assert self.engine.memory is not None, "it does not watch its memory"
            return {"bytes": self.engine.memory()}
        # An engine is anybody's code: whatever it raises is an answer.
        except Exception as error:
            traceback.print_exc()
            kind = "" if isinstance(error, QcoreError) else f"{type(error).__name__}: "
            return {"error": f"{kind}{error}"}


def _time(run: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of ``count`` runs."""
    seconds = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(count):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return seconds
