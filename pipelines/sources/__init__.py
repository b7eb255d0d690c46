"""Where rows come from: column layouts of image-link tables, the emoji corpus and its host."""
