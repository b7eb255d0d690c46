"""How artifacts are stored: tables, columns, manifests, receipts and their digests."""
