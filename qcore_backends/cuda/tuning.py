"""Which tile of a kernel is fastest: measured once for each size, kept on disk.

The file lies under ``qcore.cache_folder()``, one for each kind of GPU and version of Triton. A
choice is found by the kernel, a digest of its source, and what its speed depends on. It decides
speed alone: results are the same with every tile.
"""

import functools
import json
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs
import torch
import triton

from qcore import BackendError, cache_folder

from .device import gpu

__all__ = ["Tunings"]


class _Candidate(attrs.AttrsInstance, Protocol):
    """A value that can be written down."""


_T = TypeVar("_T", bound=_Candidate)


class Tunings:
    """The choices of one process, which reads and writes those of all."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[Any, ...], Any] = {}
        self._files: dict[Path, dict[str, Any]] = {}

    def best(
        self,
        kernel: Any,
        bucket: tuple[int | bool, ...],
        device: torch.device,
        candidates: Sequence[_T],
        run: Callable[[_T], None],
    ) -> _T:
        """The fastest candidate.

        While a CUDA graph is captured nothing can be measured: then the first one counts, once.

        Args:
            kernel: a Triton kernel.
            bucket: what the speed depends on.
            candidates: all that there are.
            run: starts the kernel with a candidate; may be called often.

        Raises:
            BackendError: none of them runs on this device.
        """
        place = (kernel.__name__, bucket, device.index)
        if place in self._chosen:
            return self._chosen[place]  # type: ignore[no-any-return]
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        path = self._path(device)
        key = f"{kernel.__name__} {kernel.cache_key[:16]} {' '.join(map(str, map(int, bucket)))}"
        known = self._read(path).get(key)
        found = next((c for c in candidates if attrs.asdict(c) == known), None)
        if found is None:
            found = self._measured(kernel, device, candidates, run)
            self._write(path, key, attrs.asdict(found))
        self._chosen[place] = found
        return found

    def _measured(
        self,
        kernel: Any,
        device: torch.device,
        candidates: Sequence[_T],
        run: Callable[[_T], None],
    ) -> _T:
        """The candidate of the least median time."""
        times: dict[int, float] = {}
        failures = []
        for index, candidate in enumerate(candidates):
            try:
                run(candidate)
                times[index] = milliseconds(functools.partial(run, candidate), device)
            # A tile that asks for more registers or shared memory than there are is no candidate.
            except (
                triton.runtime.errors.OutOfResources,
                triton.runtime.errors.PTXASError,
            ) as error:
                failures.append(str(error).splitlines()[0])
        if not times:
            raise BackendError(
                f"no tile of kernel {kernel.__name__!r} runs on {gpu(device.index).name} "
                f"({'; '.join(failures) or 'all need more shared memory than it has'}); run this "
                "program on backend 'reference'"
            )
        return candidates[min(times, key=times.__getitem__)]

    def _path(self, device: torch.device) -> Path:
        name = re.sub(r"\W+", "-", gpu(device.index).name).strip("-").lower()
        return cache_folder() / "cuda-tuning" / f"{name}-triton-{triton.__version__}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        if path not in self._files:
            self._files[path] = _stored(path)
        return self._files[path]

    def _write(self, path: Path, key: str, choice: dict[str, Any]) -> None:
        """Adds a choice to the file, with those that others have added; a folder that can't be
        written is left alone."""
        merged = {**_stored(path), **self._files[path], key: choice}
        self._files[path] = merged
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(merged, file, indent=1, sort_keys=True)
                os.replace(name, path)
            except OSError:
                os.unlink(name)
        except OSError:
            return


_REPEATS = 15
_COLD = 2**29
"""Bytes that are written before each call: more than any cache holds, and longer than Python takes
to start a kernel."""


def milliseconds(call: Callable[[], None], device: torch.device) -> float:
    """Median time of a call on the GPU that finds nothing in its caches.

    While the GPU writes what fills the caches, Python starts the call behind it. So the time is
    that of the kernel, also of one that takes less than Python does to start it.
    """
    with torch.cuda.device(device):
        try:
            caches = torch.empty(_COLD, dtype=torch.int8, device=device)
        except torch.cuda.OutOfMemoryError:
            # Times that favour what is in a cache are better than no result.
            caches = torch.empty(0, dtype=torch.int8, device=device)
        events = []
        for _ in range(_REPEATS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            caches.zero_()
            begin.record()
            call()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
    times: list[float] = [begin.elapsed_time(end) for begin, end in events]
    return statistics.median(times)


def _stored(path: Path) -> dict[str, Any]:
    """What a file holds; nothing if it is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    # Brackets without an end make the parser recurse.
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
