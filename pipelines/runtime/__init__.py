"""How stages run: the store, receipts, executors."""
