"""Turns: every engine runs for a moment, then the next one, round after round."""

import math
import statistics
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import attrs

from ..errors import BackendError
from .processes import EngineProcess

__all__ = ["Ratio", "Timing", "take_turns"]

Name = TypeVar("Name", bound=Hashable)

_MAX_RUNS = 10_000
_SHORT_S = 0.05
"""Engines quicker than this get a run that does not count at the start of each turn: it brings
their weights back into the caches and wakes their threads."""

_PAUSE_S = 0.01
"""Between turns, so that threads that spin after their last work have gone to sleep."""


@attrs.frozen(kw_only=True)
class Ratio:
    """How many times as fast as another engine: the median of the rounds, and their range."""

    median: float
    low: float
    high: float


@attrs.frozen(kw_only=True)
class Timing:
    """Seconds of each run of an engine.

    Args:
        rounds: a tuple of seconds for each round; none is empty.

    >>> slow, fast = Timing(rounds=((4.0, 6.0), (4.0,))), Timing(rounds=((2.0,), (1.0, 1.0)))
    >>> slow.median_s, slow.p99_s, slow.runs, fast.runs_per_s
    (4.0, 6.0, 3, 0.75)
    >>> fast.faster_than(slow)
    Ratio(median=3.25, low=2.5, high=4.0)
    """

    rounds: tuple[tuple[float, ...], ...]

    def _all(self) -> list[float]:
        return sorted(seconds for turn in self.rounds for seconds in turn)

    @property
    def runs(self) -> int:
        """How many runs were timed."""
        return len(self._all())

    @property
    def median_s(self) -> float:
        """Median of all runs."""
        return statistics.median(self._all())

    @property
    def p99_s(self) -> float:
        """The smallest time that 99 % of the runs don't exceed; the largest one of up to 100."""
        seconds = self._all()
        return seconds[math.ceil(0.99 * len(seconds)) - 1]

    @property
    def runs_per_s(self) -> float:
        """Runs in a second of running."""
        return self.runs / sum(self._all())

    def faster_than(self, other: "Timing") -> Ratio:
        """How many times as fast it is as ``other``, by the medians of each round."""
        ratios = [
            statistics.median(theirs) / statistics.median(ours)
            for ours, theirs in zip(self.rounds, other.rounds, strict=True)
        ]
        return Ratio(median=statistics.median(ratios), low=min(ratios), high=max(ratios))


def take_turns(
    processes: Mapping[Name, EngineProcess], *, rounds: int, turn_s: float
) -> tuple[dict[Name, Timing], dict[Name, str]]:
    """Times engines that were set up, in turns.

    Each round begins with another engine, so that none always follows the same one.

    Args:
        processes: by name.
        rounds: how often each has a turn.
        turn_s: about how long a turn takes; it is one run at least.

    Returns:
        Timings by name, and the reasons of those that failed.
    """
    turns: dict[Name, list[tuple[float, ...]]] = {}
    failures: dict[Name, str] = {}
    counts: dict[Name, int] = {}
    leads: dict[Name, int] = {}
    for name, process in processes.items():
        try:
            seconds = _warm_up(process, turn_s)
        except BackendError as error:
            failures[name] = str(error)
            continue
        turns[name] = []
        counts[name] = min(max(1, round(turn_s / seconds)), _MAX_RUNS)
        leads[name] = int(seconds < _SHORT_S)
    for turn in range(rounds):
        for name in _rotated(list(turns), turn):
            time.sleep(_PAUSE_S)
            try:
                answer = processes[name].ask("time", count=leads[name] + counts[name])
            except BackendError as error:
                failures[name] = str(error)
                del turns[name]
            else:
                turns[name].append(tuple(answer["seconds"][leads[name] :]))
    return {name: Timing(rounds=tuple(rows)) for name, rows in turns.items()}, failures


def _warm_up(process: EngineProcess, turn_s: float) -> float:
    """Runs an engine for a turn, and says how long a run takes at best."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < 100 and sum(seconds) < turn_s):
        seconds += process.ask("time", count=1)["seconds"]
    return max(min(seconds), 1e-9)


def _rotated(names: Sequence[Name], by: int) -> list[Name]:
    start = by % len(names) if names else 0
    return [*names[start:], *names[:start]]
