"""The side of the parent: engines in processes of their own."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

from ..errors import BackendError
from .serving import ANSWERS

__all__ = ["EngineProcess"]

_ENDED: dict[str, Any] = {"ended": True}
_PATIENCE_S = 1800.0


class EngineProcess:
    """A Python process that calls :func:`~qcore.benchmarking.serving.serve`.

    It sees the modules that this process sees. Use it in a ``with`` statement, or close it.

    Args:
        name: of the engine, for messages.
        arguments: of the interpreter: ``["-m", "package.module"]`` or ``["file.py"]``.
        environment: variables to set; None removes one.

    >>> code = "from qcore.benchmarking.serving import *; serve(lambda order: Engine(run=list))"
    >>> with EngineProcess("list", ["-c", code]) as process:
    ...     process.ask("setup"), len(process.ask("time", count=3)["seconds"])
    ({'facts': {}}, 3)
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self.name = name
        variables: dict[str, str | None] = {
            **os.environ,
            # Modules are found as here, and not in the working folder if they aren't here.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONSAFEPATH": "1",
            "QCORE_PROGRESS": "off",
            **(environment or {}),
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        reading, writing = os.pipe()
        variables[ANSWERS] = str(writing)
        self._pipe = os.fdopen(reading, encoding="utf-8")
        try:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env={key: value for key, value in variables.items() if value is not None},
                pass_fds=(writing,),
                encoding="utf-8",
            )
        finally:
            # Only the process may hold it: then its end is the end of the answers.
            os.close(writing)
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def send(self, do: str, **arguments: Any) -> None:
        """Gives an order; :meth:`answer` waits for what comes of it."""
        assert self._process.stdin is not None
        # If the process is dead, its answer will say so.
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)

    def answer(self, timeout_s: float = _PATIENCE_S) -> dict[str, Any]:
        """The answer to the oldest order that has had none.

        Raises:
            BackendError: the engine failed or died, or takes longer than ``timeout_s``.
        """
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise BackendError(
                f"engine {self.name!r}: no answer within {timeout_s:.0f} s; it was stopped"
            ) from None
        if answer is _ENDED:
            self._answers.put(_ENDED)
            code = self._process.wait()
            last = self.log().strip().rpartition("\n")[2]
            raise BackendError(
                f"engine {self.name!r}: its process ended with {_meaning(code)}"
                f"{last and ': ' + last}"
            )
        if "error" in answer:
            raise BackendError(f"engine {self.name!r}: {answer['error']}")
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """:meth:`send` and :meth:`answer`."""
        self.send(do, **arguments)
        return self.answer()

    def log(self) -> str:
        """What the process has written to its standard output and error so far."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", errors="replace")

    def close(self) -> None:
        """Ends the process; again does nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # A process that the engine left behind may hold the pipe; nobody waits for that.
        self._reader.join(timeout=1.0)
        if not self._reader.is_alive():
            self._pipe.close()
        self._log.close()

    def _read(self) -> None:
        for line in self._pipe:
            self._answers.put(json.loads(line))
        self._answers.put(_ENDED)


def _meaning(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
