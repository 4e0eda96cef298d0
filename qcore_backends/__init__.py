"""Built-in plug-in ``backends`` of qcore."""
