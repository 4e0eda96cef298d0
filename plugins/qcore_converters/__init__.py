"""Built-in plug-in ``converters`` of qcore."""
