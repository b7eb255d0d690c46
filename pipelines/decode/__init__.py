"""Images from strangers: decoded in a limited child process, normalised to one form."""
