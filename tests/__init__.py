"""Tests, in which the shapes of kd's tensors are checked wherever they are annotated.

Here, because this module is imported before kd in pytest's process and in those of the ranks.
"""

from jaxtyping import install_import_hook

install_import_hook(
    # Elsewhere in kd.methods, tests replace the loader or the sampler with doubles.
    ["kd.data", "kd.losses", "kd.models", "kd.rollout", "kd.methods.minillm_rollouts"],
    typechecker="beartype.beartype",
)
