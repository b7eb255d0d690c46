"""Sampling: images, captions and infills from a generator, under a grammar."""
