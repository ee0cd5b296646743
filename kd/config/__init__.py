"""The configuration of a run: its sections and fields, and how YAML files and overrides become one."""
