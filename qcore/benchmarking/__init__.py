"""Measuring speed and memory: every engine in a process of its own, all taking turns.

A parent starts one process an engine and tells each in turn to run a few times, round after round,
so that whatever slows the machine down for a while slows all of them alike. Figures are ratios to
an engine of the same run.

``serving.py`` and ``processes.py`` are the two ends of the pipe between them and, like
``rounds.py``, import no torch: an engine may be anything that Python can call.
"""
