"""Training: the plain loop, what it fits, and what it keeps on disk."""
