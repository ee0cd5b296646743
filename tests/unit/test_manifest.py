"""Manifests: every kind of damage is named."""

import json
from pathlib import Path

import pytest

from kd.manifest import FILE_NAME, DamageError, list_files, publish, read_manifest, retire, store_files, verify

FILES = {"a.pt": b"first", "student/b.pt": b"other", "config.json": b"{}"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    partial = tmp_path / "whole.partial"
    for name, content in FILES.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(content)
    publish(partial, tmp_path / "whole", files=store_files(partial, list_files(partial)), step=7)
    assert not partial.exists()
    return tmp_path / "whole"


def test_a_whole_directory_passes(directory: Path) -> None:
    manifest = verify(directory)
    assert manifest.facts == {"step": 7} and manifest.num_bytes == 12 and list(manifest.files) == sorted(FILES)
    # What neither loader would read does no harm.
    (directory / ".nfs0001").write_bytes(b"x")
    verify(directory)


def test_a_directory_is_replaced_as_a_whole(directory: Path) -> None:
    partial, left = directory.with_name("whole.partial"), directory.with_name("whole.old.partial")
    for path in (partial, left):
        path.mkdir()
        (path / "new").write_text("x")
    publish(partial, directory, files=store_files(partial, ["new"]), step=8)
    assert verify(directory).facts == {"step": 8} and list_files(directory) == ["new"]
    assert [path.name for path in directory.parent.iterdir()] == ["whole"]
    retire(directory)
    retire(directory)
    assert list(directory.parent.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{name} is missing"),
        (b"", "{name} has 0 bytes, not {size}"),
        (b"longer than before", "{name} has 18 bytes, not {size}"),
        ("flip", "{name} differs from its checksum"),
    ],
)
def test_a_damaged_file_is_named(directory: Path, name: str, content: bytes | str | None, message: str) -> None:
    path = directory / name
    if content is None:
        path.unlink()
    elif content == "flip":
        path.write_bytes(bytes([FILES[name][0] ^ 1]) + FILES[name][1:])
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    with pytest.raises(DamageError) as caught:
        verify(directory)
    assert str(caught.value) == message.format(name=name, size=len(FILES[name]))
    # One of two ranks reads the file.
    assert sum(_fails(directory, rank=rank) for rank in range(2)) == 1


def test_files_that_changed_places_are_found(directory: Path) -> None:
    (directory / "a.pt").write_bytes(FILES["student/b.pt"])
    (directory / "student" / "b.pt").write_bytes(FILES["a.pt"])
    with pytest.raises(DamageError, match=r"^a\.pt differs from its checksum$"):
        verify(directory)


def test_a_file_of_another_checkpoint_is_found(directory: Path) -> None:
    (directory / "student" / "c.pt").write_bytes(b"foreign")
    with pytest.raises(DamageError, match=r"^student/c\.pt does not belong to it$"):
        verify(directory)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"sha256": "x", "facts": {}, "files": {}}', "[" * 100_000])
def test_a_damaged_manifest_is_found(directory: Path, content: str) -> None:
    (directory / FILE_NAME).write_text(content)
    with pytest.raises(DamageError, match=r"^manifest\.json is damaged$"):
        read_manifest(directory)


def test_an_edited_manifest_is_found(directory: Path) -> None:
    manifest = json.loads((directory / FILE_NAME).read_text())
    manifest["facts"]["step"] = 8
    (directory / FILE_NAME).write_text(json.dumps(manifest))
    with pytest.raises(DamageError, match=r"^manifest\.json is damaged$"):
        read_manifest(directory)
    (directory / FILE_NAME).unlink()
    with pytest.raises(DamageError, match=r"^manifest\.json is missing$"):
        read_manifest(directory)


def _fails(directory: Path, *, rank: int) -> bool:
    try:
        verify(directory, rank=rank, num_ranks=2)
    except DamageError:
        return True
    return False
