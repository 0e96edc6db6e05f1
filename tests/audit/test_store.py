"""The store: whole files or none, one run at a time, and no changed byte that is used."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from memfold import files
from memfold.audit.seal import RECORDS, read_record
from memfold.audit.store import Store
from memfold.audit.verify import verify
from memfold.files import write_bytes
from memfold.types import InputError

PLAN = {"seed": 0, "model": "m"}


def columns(start: int) -> dict[str, list[Any]]:
    return {"x": [start + 0.1, float("nan")], "name": ["a", "é\x00"], "png": [b"\x89", b""]}


def fill(out: Path, plan: dict[str, Any] = PLAN, n: int = 3, **options: bool) -> list[int]:
    """Run a tiny job; which pieces were computed."""
    done: list[int] = []
    with Store(out, plan, **options) as store:
        for i in range(n):
            store.piece("work", i, lambda i=i: done.append(i) or columns(plan["seed"] + i))
        write_bytes(out / "results.bin", b"table")
        store.finish("audit.json", {"title": "t"}, ["results.bin"])
    return done


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_piece_is_computed_once_and_reads_back(tmp_path: Path) -> None:
    assert fill(tmp_path) == [0, 1, 2]
    assert fill(tmp_path) == []
    with Store(tmp_path, PLAN) as store:
        found = store.piece("work", 1, dict)
    assert repr(found) == repr(columns(1))
    assert pq.read_table(tmp_path / "parts" / "work-00000001.parquet").num_rows == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "audit.json", "parts", "plan.json", "results.bin",
    ]  # fmt: skip


def test_every_flipped_bit_of_a_part_is_found_and_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 60 random bits, and at each bit of the hash itself."""
    fill(tmp_path)
    part = tmp_path / "parts" / "work-00000001.parquet"
    whole = part.read_bytes()
    rng = random.Random(0)
    seal = whole.rindex(b"memfold-sha256:")
    bits = [(rng.randrange(len(whole)), rng.randrange(8)) for _ in range(40)]
    bits += [(seal + rng.randrange(79), rng.randrange(8)) for _ in range(8)]
    for place, bit in bits:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        part.write_bytes(damaged)
        assert fill(tmp_path) == [1], (place, bit)
        assert "work-00000001.parquet" in capsys.readouterr().err
        assert part.read_bytes() == whole


def test_a_part_under_another_name_is_not_used(tmp_path: Path) -> None:
    fill(tmp_path)
    parts = tmp_path / "parts"
    parts.joinpath("work-00000000.parquet").replace(parts / "work-00000002.parquet")
    assert fill(tmp_path) == [0, 2]


def test_parts_of_another_plan_are_not_used_when_the_plan_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)
    (tmp_path / "plan.json").unlink()
    assert fill(tmp_path, PLAN | {"seed": 7}) == [0, 1, 2]
    assert "belongs to another plan; it is computed again" in capsys.readouterr().err
    with Store(tmp_path, PLAN | {"seed": 7}) as store:
        assert store.piece("work", 0, dict)["x"][0] == 7.1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "[" * 100_000, "\ud800"])
def test_overwrite_mends_a_damaged_plan(tmp_path: Path, text: str) -> None:
    fill(tmp_path)
    whole = tree(tmp_path)
    (tmp_path / "plan.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"plan\.json is damaged; choose another --out, or --over"):
        Store(tmp_path, PLAN)
    assert tree(tmp_path) == before
    assert fill(tmp_path, overwrite=True) == []  # the parts say themselves that they are right
    assert tree(tmp_path) == whole


def test_overwrite_discards_another_audit_with_its_tables(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "mine.txt").write_text("kept")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"holds another audit \(seed differ\)"):
        fill(tmp_path, PLAN | {"seed": 1})
    assert tree(tmp_path) == before
    with pytest.raises(KeyboardInterrupt), Store(tmp_path, PLAN | {"seed": 1}, overwrite=True):
        raise KeyboardInterrupt
    assert set(tree(tmp_path)) == {"mine.txt"}


@pytest.mark.parametrize("error", [InputError("no"), KeyboardInterrupt(), OSError(28, "full")])
def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "a" / "b"
    with pytest.raises(type(error)), Store(out, PLAN):
        raise error
    assert list(tmp_path.iterdir()) == []
    assert fill(out, PLAN | {"seed": 3}) == [0, 1, 2]


def test_a_plan_without_pieces_does_not_block_a_corrected_call(tmp_path: Path) -> None:
    """As a kill before the first piece leaves it."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / ".memfold-x1.tmp").write_text("half a part")
    (tmp_path / ".memfold-x2.tmp").write_text("half a table")
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    assert fill(tmp_path, PLAN | {"seed": 1}) == [0, 1, 2]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_second_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """In this process and from another; when the first has ended, it may."""
    code = (
        "import sys; from memfold.audit.store import Store; from memfold.types import InputError\n"
        "try: Store(sys.argv[1], {'seed': 1}, overwrite=True)\n"
        "except InputError as error: print(error)\n"
    )
    with Store(tmp_path, PLAN) as store:
        store.piece("work", 0, lambda: columns(0))
        before = tree(tmp_path)
        with pytest.raises(InputError, match="another run is at work in"):
            Store(tmp_path, PLAN | {"seed": 1}, overwrite=True)
        argv = [sys.executable, "-c", code, str(tmp_path)]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert "another run is at work in" in said
        assert tree(tmp_path) == before
    assert fill(tmp_path) == [1, 2]


def test_the_lock_of_a_killed_run_does_not_block(tmp_path: Path) -> None:
    code = (
        "import sys, time; from memfold.audit.store import Store\n"
        "s = Store(sys.argv[1], {'seed': 0, 'model': 'm'})\n"
        "s.piece('work', 0, lambda: {'x': [1]}); print('ready', flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / ".memfold.lock").exists()
    assert fill(tmp_path) == [1, 2]
    assert not (tmp_path / ".memfold.lock").exists()


@pytest.mark.parametrize("name", ["plan.json", "parts", "parts/work-00000000.parquet"])
def test_a_planted_link_is_refused(tmp_path: Path, name: str) -> None:
    target, out = tmp_path / "target", tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    target.mkdir() if name == "parts" else target.write_text("mine")
    if name == "parts":
        (out / "parts").rmdir()
    (out / name).symlink_to(target)
    with pytest.raises(InputError, match=r"is a symbolic link; remove it"):
        fill(out)
    assert target.is_dir() or target.read_text() == "mine"
    assert (out / name).is_symlink()
    assert not (target / "work-00000000.parquet").exists()


def test_an_output_replaces_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "report.html").symlink_to(tmp_path / "mine")
    write_bytes(tmp_path / "report.html", b"page")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "report.html").is_symlink()


def test_a_full_disk_names_the_file_and_leaves_what_stood_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC at any of the calls that can find it; the run then goes on where it was."""
    (tmp_path / "x").write_bytes(b"old")
    for call in ("fsync", "replace"):

        def full(*rest: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(files.os, call, full)
            with pytest.raises(OSError, match="No space left") as stop:
                write_bytes(tmp_path / "x", b"new")
        assert stop.value.filename == str(tmp_path / "x")
        assert tree(tmp_path) == {"x": b"old"}
    out = tmp_path / "out"
    with Store(out, PLAN) as store:
        store.piece("work", 0, lambda: columns(0))
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                store.piece("work", 1, lambda: columns(1))
    assert fill(out) == [1, 2]


def test_files_get_the_usual_mode_and_reach_the_disk_before_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, n=name, r=real: (order.append(n), r(*a))[1])
    mask = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"1")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the directory


def test_temporary_names_cannot_be_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come from tempfile, which creates them with O_EXCL."""
    seen: list[str] = []
    real = tempfile.mkstemp
    monkeypatch.setattr(
        files.tempfile, "mkstemp", lambda **o: seen.append((made := real(**o))[1]) or made
    )
    for _ in range(3):
        write_bytes(tmp_path / "x", b"1")
    assert len(set(seen)) == 3
    assert {Path(name).parent for name in seen} == {tmp_path}


_JOB = """
import sys
from memfold.audit.store import Store
from memfold.audit.verify import verify
from memfold.files import write_bytes
print("ready", flush=True)
with Store(sys.argv[1], {'seed': 0}) as store:
    found = [store.piece('work', i, lambda: {'x': [i / 3] * 2000})['x'] for i in range(40)]
    write_bytes(sys.argv[1] + '/results.bin', repr(found).encode())
    store.finish('audit.json', {'title': 't'}, ['results.bin'])
"""


@pytest.mark.parametrize(
    "kills", [3, pytest.param(60, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_kills_at_random_points_lose_nothing(tmp_path: Path, kills: int) -> None:
    """The end is that of a whole run, byte by byte, without leftovers."""
    rng = random.Random(kills)
    out = tmp_path / "killed"
    for _ in range(kills):
        argv = [sys.executable, "-c", _JOB, str(out)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
    for path in (out, tmp_path / "whole"):
        subprocess.run([sys.executable, "-c", _JOB, str(path)], check=True)
    assert tree(out) == tree(tmp_path / "whole")


_SEEDED = (
    _JOB.replace("{'seed': 0}", "{'seed': int(sys.argv[2])}, overwrite=True")
    .replace("i / 3", "int(sys.argv[2]) + i / 3")
    .replace("audit.json", "bench.json")
)


def test_two_runs_that_overwrite_at_once_leave_one_whole_audit(tmp_path: Path) -> None:
    """Whoever comes second is refused, or begins when the first has ended; nothing is mixed."""
    out = tmp_path / "out"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _SEEDED, str(out), str(seed)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    said = [process.communicate()[1] for process in runs]
    for process, text in zip(runs, said, strict=True):
        assert process.returncode == 0 or "another run is at work in" in text, text
    assert verify(out) == []
    seed = json.loads((out / "plan.json").read_text())["seed"]
    found = [[seed + i / 3] * 2000 for i in range(40)]
    assert (out / "results.bin").read_text() == repr(found)


def test_a_record_finds_every_flipped_bit_of_itself_and_its_files(tmp_path: Path) -> None:
    fill(tmp_path)
    record = tmp_path / "audit.json"
    assert RECORDS[0] == record.name
    assert read_record(record)[1] == []
    rng = random.Random(1)
    for path in (record, record, *sorted(p for p in tmp_path.rglob("*") if p.is_file())):
        whole = path.read_bytes()
        for _ in range(20):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            assert read_record(record)[1], (path, damaged)
        path.write_bytes(whole)
