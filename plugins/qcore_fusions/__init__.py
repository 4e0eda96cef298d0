"""Built-in plug-in ``fusions`` of qcore."""
