"""Manifests: sizes and checksums of a directory's files, written last, so that damage is found before they are used."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.files import write_atomically

FILE_NAME = "manifest.json"


class DamageError(Exception):
    """A directory is not what was written; the message names the first file that differs, and how."""


@dataclass(frozen=True, kw_only=True)
class FileSum:
    """Size [bytes] and SHA-256 of a file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a complete directory contains."""

    facts: Mapping[str, Any]
    """What its writer said about it."""
    files: Mapping[str, FileSum]
    """By name, relative to the directory."""

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files.values())


def list_files(directory: Path) -> list[str]:
    """Names of all files below a directory, except its manifest."""
    found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in found if name != FILE_NAME)


def store_files(directory: Path, names: Iterable[str]) -> dict[str, FileSum]:
    """Wait until files of a directory are on the disk; returns their sums."""
    sums = {}
    for name in names:
        _sync(directory / name)
        sums[name] = _sum(directory / name)
    return sums


def publish(partial: Path, directory: Path, *, files: Mapping[str, FileSum], **facts: Any) -> None:
    """Write the manifest of a directory whose files are stored, and give the directory its final name.

    Other processes, and whatever is left after a crash, see the whole directory under that name or none of it. One that
    is there already is replaced.
    """
    content = {"facts": facts, "files": {name: vars(file) for name, file in files.items()}}
    manifest = {"sha256": _sum_of(content), **content}
    write_atomically(partial / FILE_NAME, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    for path in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        _sync(path)
    retire(directory)
    os.replace(partial, directory)
    _sync(directory.parent)


def retire(directory: Path) -> None:
    """Remove a directory, if it is there; a crash leaves none under its name that has lost some of its files."""
    retired = directory.with_name(f"{directory.name}.old.partial")
    shutil.rmtree(retired, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.replace(directory, retired)
        shutil.rmtree(retired)


def read_manifest(directory: Path) -> Manifest:
    """Read a directory's manifest, whose own checksum is in it.

    Raises:
        DamageError: it is missing or damaged.
    """
    try:
        content = json.loads((directory / FILE_NAME).read_bytes())
        expected = content.pop("sha256")
        files = {name: FileSum(**values) for name, values in content["files"].items()}
        manifest = Manifest(facts=content["facts"], files=files)
    except FileNotFoundError:
        raise DamageError(f"{FILE_NAME} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamageError(f"{FILE_NAME} is damaged") from None
    except OSError as error:
        raise DamageError(f"{FILE_NAME} cannot be read ({error.strerror})") from None
    if _sum_of(content) != expected:
        raise DamageError(f"{FILE_NAME} is damaged")
    return manifest


def verify(directory: Path, *, rank: int = 0, num_ranks: int = 1) -> Manifest:
    """Compare a directory's files with its manifest; each of `num_ranks` ranks reads its share of them.

    Raises:
        DamageError: a file is missing or differs, or one of another checkpoint lies among them.
    """
    manifest = read_manifest(directory)
    for name in sorted(manifest.files)[rank::num_ranks]:
        _verify_file(directory / name, manifest.files[name], name=name)
    # Loaders choose among files of these kinds by their names.
    kinds = (".pt", ".safetensors")
    foreign = [name for name in list_files(directory) if name.endswith(kinds) and name not in manifest.files]
    if foreign:
        raise DamageError(f"{foreign[0]} does not belong to it")
    return manifest


def find_damage(directory: Path, *, rank: int = 0, num_ranks: int = 1) -> str | None:
    """The message of `verify`'s error, or None."""
    try:
        verify(directory, rank=rank, num_ranks=num_ranks)
    except DamageError as error:
        return str(error)
    return None


def _verify_file(path: Path, expected: FileSum, *, name: str) -> None:
    try:
        size = path.stat().st_size
        if size != expected.num_bytes:
            raise DamageError(f"{name} has {size} bytes, not {expected.num_bytes}")
        if _sum(path) != expected:
            raise DamageError(f"{name} differs from its checksum")
    except FileNotFoundError:
        raise DamageError(f"{name} is missing") from None
    except OSError as error:
        raise DamageError(f"{name} cannot be read ({error.strerror})") from None


def _sum(path: Path) -> FileSum:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileSum(num_bytes=file.tell(), sha256=digest.hexdigest())


def _sum_of(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
