"""Built-in plug-in ``fakequants`` of qcore."""
