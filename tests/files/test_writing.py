"""Old or new, whatever fails: processes are killed and interrupted at every line."""

import errno
import itertools
import os
import shutil
import signal
import sys
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tdquant.errors import StorageError
from tdquant.files import workspace, writing
from tdquant.files.places import check_folder
from tdquant.files.writing import (
    creating,
    new_folder,
    recover,
    replacing,
    replacing_folder,
    write_tensors,
)

WATCHED = {workspace.__file__: 1, writing.__file__: 1, shutil.__file__: 6}
"""Files with every step of writing, and of how many of their lines one is tried."""

USERS = {".a.old": "x", ".a.12345678.new": "y", "a.old": "z", ".a.tdquant-0.txt": "w"}
"""Files of the user, with names that look like ours."""


def write_file(target, text):
    with replacing(target) as fresh:
        fresh.write_text(text)


def write_folder(target, text):
    with replacing_folder(target, "mark", is_own={"mark", "deep/b"}.__contains__) as fresh:
        (fresh / "mark").write_text(text)
        (fresh / "deep").mkdir()
        (fresh / "deep" / "b").write_text(text)


def write_new(target, text):
    with new_folder(target) as fresh:
        (fresh / "mark").write_text(text)


def write_once(target, text):
    with creating(target) as fresh:
        fresh.write_text(text)


def content(target):
    """What a reader finds; a folder whose files disagree is a mistake."""
    recover(target)
    if not target.exists():
        return None
    if target.is_file():
        return target.read_text()
    files = [f for f in target.rglob("*") if f.is_file() and f.name != "notes"]
    (text,) = {f.read_text() for f in files} or {None}
    assert len(files) in ((0, 1) if text is None else (1, 2))
    return text


class Death(BaseException):
    """Raised by every line from a certain one on, those of handlers included."""


@contextmanager
def at_lines(acts):
    """Calls ``acts(number)`` before lines of watched files are run."""
    seen, passed = itertools.count(1), Counter()

    def trace(frame, event, _):
        file = frame.f_code.co_filename
        if file not in WATCHED:
            return None
        passed[file] += event == "line"
        if event == "line" and passed[file] % WATCHED[file] == 0:
            acts(next(seen))
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


def stopped_by(error, lines, write, target, text):
    """Whether a writer met an error at one of these lines."""
    met = False

    def act(number):
        nonlocal met
        if number in lines:
            met = True
            raise error

    try:
        with at_lines(act):
            write(target, text)
    except (Death, KeyboardInterrupt, OSError):  # shutil closes a file twice then
        assert met
    return met


def dead_from(line, *job):
    """As if the process died at that line, in a moment."""
    return stopped_by(Death, range(line, 10**6), *job)


def interrupted_at(line, *job):
    """An interrupt at that line; handlers run."""
    return stopped_by(KeyboardInterrupt, (line,), *job)


def killed_at(line, write, target, text):
    """Whether a process that writes was killed at that line."""
    child = os.fork()
    if child == 0:
        with at_lines(lambda number: number == line and os.kill(os.getpid(), signal.SIGKILL)):
            write(target, text)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


KINDS = {"file": write_file, "folder": write_folder, "new": write_new, "once": write_once}
CREATING = ("new", "once")
"""Kinds that replace nothing."""


@pytest.mark.parametrize(
    "stopped_at", [dead_from, interrupted_at, pytest.param(killed_at, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("swap", [True, False], ids=["swap", "two renames"])
@pytest.mark.parametrize("kind", KINDS)
def test_old_or_new_wherever_it_ends(tmp_path, monkeypatch, kind, swap, stopped_at):
    if not swap:
        monkeypatch.setattr(workspace, "_exchange", lambda one, other: False)
    write, number, seen = KINDS[kind], 0, set()
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of them; see below
    while True:
        number += 1
        place = tmp_path / str(number)
        place.mkdir()
        for name, text in USERS.items():
            (place / name).write_text(text)
        target, before = place / "a", None
        if kind not in CREATING:
            before = "first"
            write(target, before)
        if kind == "folder":
            (target / "notes").write_text("of the user")
        stopped = stopped_at(number, write, target, "second")
        found = content(target)
        assert found in (before, "second"), number
        seen.add(found)
        if kind in CREATING and target.exists():
            target.rename(tmp_path / f"{number} was")
        write(target, "third")
        assert content(target) == "third"
        assert {f.name for f in place.iterdir()} == {"a", *USERS}, number
        assert all((place / name).read_text() == text for name, text in USERS.items())
        if kind == "folder":
            assert (target / "notes").read_text() == "of the user"
        if not stopped:
            break
    assert number > 30
    assert seen == {before, "second"}


STEPS = {
    (os, "mkdir"): KINDS, (os, "open"): KINDS, (os, "fsync"): KINDS,
    (os, "replace"): ["file", "folder", "new"],
    (os, "rename"): ["folder"], (workspace, "open"): KINDS,
}  # fmt: skip


@pytest.mark.parametrize("swap", [True, False], ids=["swap", "two renames"])
@pytest.mark.parametrize(
    ("step", "kind"), [(step, kind) for step, kinds in STEPS.items() for kind in kinds]
)
def test_a_step_that_the_disk_refuses(tmp_path, monkeypatch, kind, swap, step):
    if not swap:
        monkeypatch.setattr(workspace, "_exchange", lambda one, other: False)
    write, target = KINDS[kind], tmp_path / "a"
    before = None if kind in CREATING else "first"
    if before:
        write(target, before)

    def refuse(path, *args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    if step == (os, "rename") and swap:
        return  # not needed there
    with monkeypatch.context() as patch:
        patch.setattr(*step, refuse, raising=False)
        with pytest.raises(StorageError, match="No space left") as caught:
            write(target, "second")
    assert caught.value.where == str(target)
    assert content(target) == before
    if step != (os, "open"):  # without it nothing can be removed
        assert [f.name for f in tmp_path.iterdir()] == (["a"] if before else [])
    write(target, "third")
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_the_first_to_create_a_file_wins(tmp_path):
    with creating(tmp_path / "a") as fresh:
        fresh.write_text("late")
        write_once(tmp_path / "a", "first")
    assert content(tmp_path / "a") == "first"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_content_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def named(descriptor):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(one, other):
        done.append("rename")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", named)
    monkeypatch.setattr(os, "replace", renamed)
    write_file(tmp_path / "a", "text")
    assert done == ["new", "rename"]
    done.clear()
    write_folder(tmp_path / "f", "text")
    assert sorted(done[:2]) == ["b", "mark"] or done[:2] == ["b", "deep"] or done[0] == "mark"
    assert done[-3:] == ["new", "rename", tmp_path.name]
    assert set(done[:-3]) == {"mark", "deep", "b"}
    assert done.index("b") < done.index("deep")


def test_missing_folders_are_made_and_nothing_else_stays(tmp_path):
    file = tmp_path / "folder" / "a.txt"
    for text in ("first", "second"):
        write_file(file, text)
        assert file.read_text() == text
    assert [p.name for p in file.parent.iterdir()] == ["a.txt"]


def test_a_failure_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fail():
        with replacing(file) as fresh:
            fresh.write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="space"):
        fail()
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_two_writers_do_not_disturb_each_other(tmp_path):
    for name, write in (("file", write_file), ("folder", write_folder)):
        target = tmp_path / name
        with replacing(target) if name == "file" else replacing_folder(target, "mark") as fresh:
            write(target, "in between")
            assert content(target) == "in between"
            (fresh if name == "file" else fresh / "mark").write_text("last")
        assert content(target) == "last"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_living_process_keeps_its_workspace(tmp_path):
    target, go = tmp_path / "a", os.pipe()
    ready = os.pipe()
    child = os.fork()
    if child == 0:
        with replacing(target) as fresh:
            fresh.write_text("of the child")
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    write_file(target, "of the parent")
    os.write(go[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert target.read_text() == "of the child"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "fcntl", None)
    write_file(tmp_path / "a", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    os.mkdir(tmp_path / ".a.tdquant-0")  # of a process that may be alive
    write_file(tmp_path / "a", "more")
    assert (tmp_path / "a").read_text() == "more"
    assert (tmp_path / ".a.tdquant-0").exists()


def test_what_a_user_put_there_is_kept_or_refused(tmp_path):
    target = tmp_path / "a"
    target.mkdir()
    (target / "thesis").write_text("years")
    for write in (write_folder, write_new):
        with pytest.raises(StorageError, match="there is something"):
            write(target, "x")
    (target / "thesis").unlink()
    with new_folder(target) as fresh:
        (fresh / "mark").write_text("ours")
        (target / "late").write_text("while it was written")
        with pytest.raises(StorageError, match="something"):
            check_folder(target, "mark")
        (target / "late").unlink()
    with replacing_folder(target, "mark", lambda name: name == "mark") as fresh:
        (fresh / "mark").write_text("second")
        (target / "sub").mkdir()
        (target / "sub" / "late").write_text("while it was written")
        (target / "link").symlink_to("mark")
    assert (target / "mark").read_text() == "second"
    assert (target / "sub" / "late").read_text() == "while it was written"
    assert (target / "link").is_symlink()
    with (
        pytest.raises(StorageError, match="exists"),
        replacing_folder(target, "mark", lambda name: name == "mark") as fresh,
    ):
        (fresh / "link").write_text("in the place of the user's")
    assert (target / "mark").read_text() == "second"


def test_tensors_are_written_as_the_library_does(tmp_path):
    (tmp_path / "plain").write_text("")
    file = tmp_path / "a.safetensors"
    one = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": torch.arange(3), "b": one, "c": one.half(), "d": torch.tensor(True)}
    tensors |= {"e": torch.zeros(0, 2), "f": torch.tensor(2.5, dtype=torch.bfloat16)}
    for metadata in (None, {"made": "here"}):
        write_tensors(tensors, file, metadata)
        save_file(tensors, tmp_path / "theirs", metadata)
        assert file.read_bytes() == (tmp_path / "theirs").read_bytes()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"made": "here"}
    many = torch.ones(1, dtype=torch.int64).expand(1, 3)
    write_tensors({"t": one.T, "same": one, "many": many, "single": many[:, :1]}, file)
    assert load_file(file)["single"].tolist() == [[1]]
    assert torch.equal(load_file(file)["t"], one.T)
