import errno
import json
import os
from pathlib import Path

import pytest
import torch

from gs.errors import SplatrimError
from gs.files import atomic_write, check_writable, read_json, write_json, write_text


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_atomic_write_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_text(path, "first")
    write_text(path, "second")
    assert path.read_text() == "second"
    assert leftovers(path.parent) == ["file.txt"]


def test_atomic_write_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "file.txt", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom"), SystemExit(3)])
def test_failure_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_write(path) as file:
        file.write(b"half of the new")
        raise error
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["file.bin"]


def test_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "model.ply"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SplatrimError, match=r"model\.ply.*No space left"):
        write_text(path, "new")
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["model.ply"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_inside_torch_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that writes through a callback hides the cause; the sentence names it anyway."""
    import gs.files

    class Full(gs.files._RecordingFile):
        def __init__(self, name: Path, mode: str) -> None:
            Path(name).touch()
            super().__init__("/dev/full", "wb")

    monkeypatch.setattr(gs.files, "_RecordingFile", Full)
    with pytest.raises(SplatrimError, match=r"model\.pth.*No space left"):
        with atomic_write(tmp_path / "model.pth") as file:
            torch.save({"x": torch.zeros(1 << 20)}, file)
    assert leftovers(tmp_path) == []


def test_interrupt_inside_torch_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gs.files

    class Interrupted(gs.files._RecordingFile):
        def write(self, b: object, /) -> int:
            self.failure = KeyboardInterrupt()
            raise self.failure

    (tmp_path / "model.pth").write_bytes(b"old")
    monkeypatch.setattr(gs.files, "_RecordingFile", Interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "model.pth") as file:
        torch.save({"x": torch.zeros(1 << 20)}, file)
    assert (tmp_path / "model.pth").read_bytes() == b"old"
    assert leftovers(tmp_path) == ["model.pth"]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SplatrimError, match="cannot write"):
        write_text(tmp_path / "out" / "file.txt", "x")
    with pytest.raises(SplatrimError, match="not a folder"):
        check_writable(tmp_path / "out" / "deeper")


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "there" / "yet")
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_check_writable_refuses_a_read_only_place() -> None:
    with pytest.raises(SplatrimError, match="cannot write into /proc/out"):
        check_writable("/proc/out")


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": [1, 2.5, None]})
    assert read_json(path) == json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    path.write_text("{")
    with pytest.raises(SplatrimError, match="not valid JSON"):
        read_json(path)
    with pytest.raises(SplatrimError, match="cannot read"):
        read_json(tmp_path / "absent.json")
