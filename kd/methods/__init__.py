"""Training algorithms: one file each, with its settings, what it needs, and its step."""

from kd.methods.load import METHODS, check_method, config_type, find_method, load_config, requested_method

__all__ = ["METHODS", "check_method", "config_type", "find_method", "load_config", "requested_method"]
