"""promptkd check: whether what a run wrote is what lies on the disk."""

from pathlib import Path

from kd.errors import UserError
from kd.manifest import DamageError, verify

_RESULTS = ("checkpoints/step-*", "exports/step-*", "best", "final")


def check_run(run_dir: Path) -> bool:
    """Print a line for each checkpoint and export of a run; whether all of them are whole.

    Raises:
        UserError: there is none.
    """
    found = [path for results in _RESULTS for path in sorted(run_dir.glob(results), key=_by_step)]
    if not found:
        raise UserError(f"{run_dir}: has no checkpoint and no export; give the run.dir of a training")
    width = max(len(str(path.relative_to(run_dir))) for path in found)
    all_whole = True
    for path in found:
        state, detail = _state(path)
        all_whole = all_whole and state != "damaged"
        print(f"{path.relative_to(run_dir)!s:<{width}}  {state:<8}  {detail}", flush=True)
    return all_whole


def _by_step(path: Path) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, path.name))
    return int(digits or 0), path.name


def _state(path: Path) -> tuple[str, str]:
    if path.suffix == ".partial":
        return "partial", "its write was interrupted; the next start removes it"
    try:
        manifest = verify(path)
    except DamageError as error:
        return "damaged", str(error)
    return "whole", f"{len(manifest.files)} files, {manifest.num_bytes / 1e9:.3f} GB"
