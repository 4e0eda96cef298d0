"""The plug-in ``acme`` of qcore: the observer ``acme_percentile_of_batches``."""
