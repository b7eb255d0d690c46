"""How generations and generators are scored: one row of the score table a measure."""
