"""The report: one HTML page of a user's own runs. `python -m evaluation.report --help`."""
