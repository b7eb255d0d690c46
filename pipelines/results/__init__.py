"""The results of a study: its score rows gathered, summed up over seeds, and written as a page."""
