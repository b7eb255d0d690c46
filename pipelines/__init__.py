"""Stages: artifacts in, artifacts out."""
