"""The paper's tables and figures with your runs beside them; not installed. `python -m evaluation.paper --help`."""
