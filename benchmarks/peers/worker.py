"""One engine with one network in a process of its own.

    python worker.py build NETWORK MODULE FOLDER
    python worker.py serve NETWORK ENGINE FOLDER THREADS

The first writes the files that the engine needs; the second answers the parent.
"""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

from engines import ENGINES

DATA = "data"
"""Stands for the network's own files in the place of an engine's module."""

_WRONG_DB = 5.0
"""Below this signal to noise ratio an engine computes something else."""


def main(do: str, network_name: str, engine: str, folder: str, *rest: str) -> None:
    """Builds or serves."""
    if do == "build":
        build(network_name, engine, Path(folder))
    else:
        serve_engine(network_name, engine, Path(folder), int(rest[0]))


def build(network_name: str, module: str, folder: Path) -> None:
    """Writes the files of an engine, or those of the network, to ``folder``, made anew."""
    from networks import network_named

    network = network_named(network_name)
    if module == DATA:
        network.make_files(folder)
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    importlib.import_module(module).build(network, folder)


def serve_engine(network_name: str, engine: str, folder: Path, threads: int) -> None:
    """Answers the parent; each set-up is for one batch size."""
    import numpy as np
    from networks import network_named

    from qcore.benchmarking.serving import Engine, serve

    entry = ENGINES[engine]
    module = importlib.import_module(entry.module)
    network = network_named(network_name)
    data = network.data(folder.parent)

    def setup(order: dict[str, Any]) -> Engine:
        batch = order["batch"]
        run = module.load(network, folder, entry.variant, data.batch(batch), threads)
        sqnr_db = data.sqnr_db(np.asarray(run()))
        if not sqnr_db >= _WRONG_DB:
            raise RuntimeError(f"its outputs are wrong: {sqnr_db:.1f} dB to those in float32")
        return Engine(run=run, facts={"sqnr_db": min(sqnr_db, 200.0)})

    serve(setup)


if __name__ == "__main__":
    main(*sys.argv[1:])
