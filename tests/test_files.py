"""What a file that is written may replace."""

import errno
import os

import pytest

from vnca import files
from vnca.__main__ import main


def test_what_a_link_points_to_is_replaced(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.txt", "target.txt"]


def test_a_link_to_itself_is_refused(tmp_path, capsys):
    (tmp_path / "link.png").symlink_to(tmp_path / "link.png")
    with pytest.raises(OSError, match="link.png is a symbolic link that leads to itself"):
        files.write_text(tmp_path / "link.png", "new")
    assert main(["sample", "--weights", "conv-mnist-small", "--out", str(tmp_path / "link.png")]) == 1
    assert "leads to itself" in capsys.readouterr().err


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "private.txt"
    path.write_text("old")
    path.chmod(0o600)
    files.write_text(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda file: calls.append(os.fstat(file).st_size) or sync(file))
    monkeypatch.setattr(files.os, "replace", lambda *paths: calls.append("renamed") or replace(*paths))
    files.write_text(tmp_path / "new.txt", "content")
    assert calls == [7, "renamed"]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*result.json'"),
        files.replacing(tmp_path / "result.json") as beside,
    ):
        beside.touch()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is a device or a pipe"):
        files.write_text(tmp_path / "pipe", "new")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1
