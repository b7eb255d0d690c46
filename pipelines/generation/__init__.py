"""What the batch tasks and the command line share: what is asked, and which candidate is kept."""
