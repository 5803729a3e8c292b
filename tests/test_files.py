import errno
import os
import resource
import socket
import subprocess
import sys

import pytest

from vitprune.errors import StoreError
from vitprune.exchange import exchange
from vitprune.files import check_free, new_folder, write_text


def write(target, text="new", **options):
    with new_folder(target, **options) as work:
        (work / "plan.json").write_text(text)
        (work / "sub").mkdir()
        (work / "sub" / "more").write_text(text)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_folder_appears_whole_and_alone(tmp_path):
    target = tmp_path / "a" / "out"
    write(target)
    assert names(target) == ["plan.json", "sub"]
    assert names(target.parent) == ["out"]


def test_permissions_are_the_usual_ones(tmp_path):
    mask = os.umask(0o027)
    try:
        with new_folder(tmp_path / "out") as work:
            (work / "a").write_text("a")
            (work / "a").chmod(0o600)
    finally:
        os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / "a").stat().st_mode & 0o777 == 0o640


def test_nothing_is_there_before_the_end(tmp_path):
    with new_folder(tmp_path / "out") as work:
        (work / "x").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "x").exists()


def test_folder_in_use_is_refused_and_left_alone(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(StoreError, match=r"out is in use; choose another --out, or replace it with --force"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "plan.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_force_replaces_only_its_own_folders(tmp_path):
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "extra").write_text("x")
    write(tmp_path / "out", "new", force=True)
    assert names(tmp_path / "out") == ["plan.json", "sub"]
    assert names(tmp_path) == ["out"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "photos").write_text("x")
    with pytest.raises(StoreError, match=r"home has no plan.json, so vitprune did not write it"):
        write(tmp_path / "home", force=True)
    assert names(tmp_path / "home") == ["photos"]


def test_empty_folder_is_taken_and_files_are_not(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert names(tmp_path / "empty") == ["plan.json", "sub"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="must be a folder, but is a file"):
        check_free(tmp_path / "file", force=True, marker="plan.json")
    with pytest.raises(StoreError, match="cannot write .*file/out"):
        write(tmp_path / "file" / "out")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("force", [False, True])
def test_an_interrupt_leaves_what_was_there(tmp_path, error, force):
    if force:
        write(tmp_path / "out", "old")
    with pytest.raises(error), new_folder(tmp_path / "out", force=force) as work:
        (work / "half").write_text("x")
        raise error
    assert names(tmp_path) == (["out"] if force else [])
    if force:
        assert (tmp_path / "out" / "plan.json").read_text() == "old"


@pytest.mark.parametrize("force", [False, True])
def test_a_failing_rename_restores_the_old_folder(tmp_path, monkeypatch, force):
    monkeypatch.setattr("vitprune.files.exchange", lambda *_: False)  # a system that cannot
    if force:
        write(tmp_path / "out", "old")
    rename = os.rename

    def failing(source, target):
        if ".partial-" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(StoreError, match="cannot write .*out: Input/output error"):
        write(tmp_path / "out", force=force)
    assert names(tmp_path) == (["out"] if force else [])
    if force:
        assert (tmp_path / "out" / "plan.json").read_text() == "old"


def test_folders_trade_names_in_one_step(tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("a moment without a folder"))
    write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "plan.json").read_text() == "new" and names(tmp_path) == ["out"]
    (tmp_path / "one").mkdir()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "nothing")


def test_what_a_killed_process_left_is_removed(tmp_path):
    write(tmp_path / "out", "old")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = tmp_path / f".out.partial-{socket.gethostname()}-{gone.stdout.strip()}-x"
    others = [
        f".out.partial-elsewhere-{gone.stdout.strip()}-x",
        f".out.partial-{socket.gethostname()}-{os.getppid()}-x",
    ]
    for name in (left.name, *others):
        (tmp_path / name).mkdir()
    write(tmp_path / "out", "new", force=True)
    assert names(tmp_path) == sorted([*others, "out"])


def test_full_disk_gives_one_message_and_no_folder(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a write past it fails as on a full disk
    try:
        with pytest.raises(StoreError, match=r"cannot write .*out: .*; nothing was kept"):
            write(tmp_path / "out", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_write_text_is_all_or_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreError, match="cannot write .*a.json"):
            write_text(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "one"
    assert names(tmp_path) == ["a.json"]
