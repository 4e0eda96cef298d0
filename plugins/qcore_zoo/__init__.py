"""Built-in plug-in ``zoo`` of qcore."""
