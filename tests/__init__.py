"""Tests, in which the annotations of kd's tensors are checked in every call.

Here, because this module is imported before kd in pytest's process and in those of the ranks.
"""

from jaxtyping import install_import_hook

install_import_hook(
    ["kd.data", "kd.losses", "kd.zero", "kd.models", "kd.rollout", "kd.methods"], typechecker="beartype.beartype"
)
