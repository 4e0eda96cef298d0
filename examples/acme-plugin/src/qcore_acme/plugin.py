"""What the plug-in contributes; light to import, the class is loaded when a recipe names it."""

from qcore import ObserverSpec, hookimpl

__all__ = ["qcore_observers"]


@hookimpl
def qcore_observers() -> tuple[ObserverSpec, ...]:
    """One observer."""
    return (
        ObserverSpec(
            name="acme_percentile_of_batches",
            summary="mean over the batches of each batch's percentile",
            target="qcore_acme.percentile_of_batches:PercentileOfBatchesObserver",
        ),
    )
