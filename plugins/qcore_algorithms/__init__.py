"""Built-in plug-in ``algorithms`` of qcore."""
