"""A distillation that takes a few minutes on two CPU cores; demo/run.py runs it."""
