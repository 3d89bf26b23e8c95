"""Many pictures from a file of requests: by one process, by several that share each, or by a Ray cluster."""
