"""A distillation that fits into a few minutes on two cores: see demo/run.py."""
