"""The generator: one decoder over text and image tokens."""
