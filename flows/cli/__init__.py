"""The command line `racm3`: one module a group of commands."""
