"""When stages run: Prefect flows and the command line."""
