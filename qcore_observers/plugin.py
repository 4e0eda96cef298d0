"""What this plug-in contributes; light to import, the classes are loaded when used."""

from qcore import ObserverSpec, hookimpl

__all__ = ["qcore_observers"]


@hookimpl
def qcore_observers() -> tuple[ObserverSpec, ...]:
    """The built-in observers."""
    return (
        ObserverSpec(
            name="ema",
            summary="moving average of each batch's smallest and largest value",
            target="qcore_observers.ema:EmaObserver",
            deviations={
                "order_of_batches_does_not_matter": "a moving average weighs later batches more",
            },
        ),
        ObserverSpec(
            name="histogram",
            summary="range of least squared error over a histogram; for activations",
            target="qcore_observers.histogram:HistogramObserver",
        ),
        ObserverSpec(
            name="kl",
            summary="range of least Kullback-Leibler divergence over a histogram",
            target="qcore_observers.kl:KlObserver",
        ),
        ObserverSpec(
            name="mean_abs",
            summary="twice the mean magnitude over sqrt(Q_P): the first step of LSQ",
            target="qcore_observers.mean_abs:MeanAbsObserver",
        ),
        ObserverSpec(
            name="minmax",
            summary="smallest and largest value of all",
            target="qcore_observers.minmax:MinMaxObserver",
        ),
        ObserverSpec(
            name="mse",
            summary="range of least squared error over every value; for weights",
            target="qcore_observers.mse:MseObserver",
        ),
        ObserverSpec(
            name="passive",
            summary="observes nothing; answers with the qparams it was given",
            target="qcore_observers.passive:PassiveObserver",
            deviations={
                "nan_and_infinity_are_refused": "values pass without a look",
                "values_are_seen": "its qparams come from outside, not from values",
            },
        ),
        ObserverSpec(
            name="percentile",
            summary="range that holds a given percentage of the values",
            target="qcore_observers.percentile:PercentileObserver",
        ),
    )
