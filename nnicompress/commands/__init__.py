"""One file a sub-command; each has `HELP` and `main(arguments) -> exit code`, and is cheap to import."""
