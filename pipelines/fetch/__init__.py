"""Fetching from strangers: policy, client, img2dataset."""
