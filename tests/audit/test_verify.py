"""`memfold verify`: silent where nothing was changed, and no changed byte that it misses."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from memfold.audit.prompt_plan import PromptPlan
from memfold.audit.prompts import run_prompts
from memfold.audit.seal import write_record
from memfold.audit.store import Store
from memfold.audit.verify import verify
from memfold.cli import app, main
from memfold.report.html import write
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
FLIPS = 5  # in each file


@pytest.fixture(scope="module")
def audited(pipeline: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of drawn images, all called, so that every file holds something."""
    out = tmp_path_factory.mktemp("verified") / "out"
    argv = ["audit", str(pipeline), "--data", str(data / "train.npz"), "--generate", "6"]
    argv += ["--holdout", str(data / "holdout.npz"), "--noises", "2", "--alpha", "0.99", "--quiet"]
    done = CliRunner().invoke(app, [*argv, "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of prompts."""
    root = tmp_path_factory.mktemp("prompted")
    tiny.pipeline("sd1 (eps)").save_pretrained(root / "model")
    (root / "p.txt").write_text("a photo of the red dog\na blue house\n")
    (root / "o.txt").write_text("\n".join(f"a {w} by anna from dublin" for w in tiny.WORDS))
    plan = PromptPlan(
        model=str(root / "model"), prompts=str(root / "p.txt"), ordinary=str(root / "o.txt"),
        images=2, steps=2, alpha=0.9, explain=False, out=str(root / "out"),
    )  # fmt: skip
    assert run_prompts(plan, progress=False)["memorized"]["count"] > 0
    write(root / "out")
    return root / "out"


@pytest.fixture(params=["audited", "prompted"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an audit, to be damaged."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "out"))


def names(out: Path) -> list[Path]:
    return sorted(p for p in out.rglob("*") if p.is_file())


def test_what_was_written_verifies_wherever_it_stands(out: Path) -> None:
    assert verify(out) == []
    done = CliRunner().invoke(app, ["verify", str(out), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["differs"]) == (0, [])


def test_every_flipped_bit_in_every_file_is_found(out: Path) -> None:
    rng = random.Random(0)
    assert len(names(out)) > 6
    for path in names(out):
        whole = path.read_bytes()
        for _ in range(2 if path.name == "report.html" else FLIPS):
            damaged = bytearray(whole)
            place, bit = rng.randrange(len(whole)), rng.randrange(8)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            said = verify(out)
            assert any(path.name in line for line in said), (path, place, bit, said)
        path.write_bytes(whole)
    assert verify(out) == []


def test_a_missing_cut_or_foreign_file_is_found(out: Path) -> None:
    for path in names(out):
        if path.name in ("audit.json", "report.html"):
            continue
        whole = path.read_bytes()
        path.unlink()
        assert any(path.name in line for line in verify(out))
        path.write_bytes(whole[: len(whole) // 2])
        assert any(path.name in line for line in verify(out))
        path.write_bytes(whole)
    some = next((out / "parts").iterdir())
    shutil.copy(some, some.with_name("other-00000000.parquet"))
    assert verify(out) == ["parts/other-00000000.parquet is not of this run"]


def rewrite(out: Path, name: str, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """Change a table, and write all hashes anew, as one who mixes files up would not."""
    table = pq.read_table(out / name)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), out / name)
    rehash(out)


def rehash(out: Path, **changes: Any) -> None:
    facts = json.loads((out / "audit.json").read_text()) | changes
    files = facts.pop("files")
    facts.pop("sha256")
    write_record(out / "audit.json", facts, list(files))


def raised(column: str) -> Callable[[dict[str, list[Any]]], None]:
    def change(table: dict[str, list[Any]]) -> None:
        table[column][0] += 1.0

    return change


@pytest.mark.parametrize(
    ("which", "name", "column"),
    [
        ("audited", "results.parquet", "lid_model"),
        ("audited", "results.parquet", "misfit"),
        ("audited", "reference.parquet", "lid_model_stderr"),
        ("prompted", "results.parquet", "score"),
        ("prompted", "results.parquet", "p_value"),
    ],
)
def test_tables_must_follow_from_the_parts_even_with_right_hashes(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, name: str, column: str
) -> None:
    out = Path(shutil.copytree(request.getfixturevalue(which), tmp_path / "out"))
    rewrite(out, name, raised(column))
    assert any(line.startswith(f"{name}: {column} ") for line in verify(out))


def test_counts_and_report_must_follow_from_the_tables(audited: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(audited, tmp_path / "out"))
    rehash(out, title="Another title")
    assert verify(out) == [
        "report.html is not what the tables draw; memfold report DIR draws it again"
    ]
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
    assert verify(out) == []
    facts = json.loads((out / "audit.json").read_text())
    rehash(out, counts=facts["counts"] | {"none": 99})
    assert any("counts are not those of results.parquet" in line for line in verify(out))
    with np.load(out / "samples.npz") as file:
        np.savez(out / "samples.npz", images=file["images"] ^ 1)
    rehash(out, counts=facts["counts"])
    assert "samples.npz: the images are not those of the parts" in verify(out)


def test_a_link_that_would_run_code_is_dropped(prompted: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(prompted, tmp_path / "out"))
    work = {"key": "k", "text": "t", "bibtex": "b", "url": "javascript:alert(1)"}
    rehash(out, citations=[work, {"text": "none"}])
    page = write(out).read_text()
    assert "javascript:alert(1)" in page
    assert 'href="javascript' not in page


def test_a_damaged_picture_is_one_line(
    prompted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = Path(shutil.copytree(prompted, tmp_path / "out"))

    def cut(table: dict[str, list[Any]]) -> None:
        table["images"][0][0] = table["images"][0][0][:60]

    rewrite(out, "flagged.parquet", cut)
    monkeypatch.setattr("sys.argv", ["memfold", "report", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "a picture is no readable PNG" in capsys.readouterr().err
    said = verify(out)
    assert "flagged.parquet: a row is not that of the parts" in said
    assert any(line.startswith("report.html cannot be compared") for line in said)


def test_parts_of_another_plan_are_found_even_with_right_hashes(tmp_path: Path) -> None:
    for seed in (0, 1):
        with Store(tmp_path / str(seed), {"seed": seed}) as store:
            store.piece("test", 0, lambda: {"x": [1]})
            store.finish("bench.json", {}, [])
    name = "parts/test-00000000.parquet"
    shutil.copy(tmp_path / "1" / name, tmp_path / "0" / name)
    write_record(tmp_path / "0" / "bench.json", {}, ["plan.json", name])
    assert verify(tmp_path / "0") == [f"{name} belongs to another plan"]
    assert verify(tmp_path / "1") == []


@pytest.mark.slow
def test_an_audit_that_is_killed_at_random_points_ends_as_a_whole_one(
    pipeline: Path, data: Path, audited: Path, tmp_path: Path
) -> None:
    """Twenty SIGKILLs during the command; then tables as of a run that nobody stopped."""
    out, rng = tmp_path / "out", random.Random(0)
    argv = [sys.executable, "-m", "memfold", "audit", str(pipeline), "--data"]
    argv += [str(data / "train.npz"), "--generate", "6", "--holdout", str(data / "holdout.npz")]
    argv += ["--noises", "2", "--alpha", "0.99", "--quiet", "--out", str(out)]
    for _ in range(20):
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(1, 10))
            process.send_signal(signal.SIGKILL)
    subprocess.run(argv, check=True)
    assert verify(out) == []
    for name in ("results.parquet", "reference.parquet", "pictures.parquet"):
        killed, whole = (pq.read_table(place / name).to_pydict() for place in (out, audited))
        assert repr(killed) == repr(whole), name
    assert not list(out.rglob(".memfold*"))


@pytest.mark.parametrize("kind", ["nothing", "no directory", "unfinished", "a file"])
def test_what_is_no_finished_audit_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "x"
    if kind == "a file":
        place.write_text("{}")
    elif kind != "no directory":
        place.mkdir()
    if kind == "unfinished":
        with Store(place, {"seed": 0}) as store:
            store.piece("test", 0, lambda: {"x": [1]})
    monkeypatch.setattr("sys.argv", ["memfold", "verify", str(place)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "holds no finished audit or benchmark" in capsys.readouterr().err


def test_the_command_says_what_differs_and_exits_with_1(audited: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(audited, tmp_path / "out"))
    (out / "results.parquet").write_bytes(b"")
    done = CliRunner().invoke(app, ["verify", str(out)])
    assert done.exit_code == 1
    assert "results.parquet does not match its hash" in done.output.splitlines()
    quiet = CliRunner().invoke(app, ["verify", str(out), "--quiet"])
    assert quiet.exit_code == 1
    assert quiet.stdout.startswith("results.parquet does not match its hash\n")
