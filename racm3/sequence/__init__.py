"""How documents become one row of tokens, where each token stands, and what a batch is."""
