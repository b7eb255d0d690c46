"""What is learned: which spans are masked, how they move, and the weighted loss."""
