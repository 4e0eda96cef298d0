"""Built-in plug-in ``observers`` of qcore."""
