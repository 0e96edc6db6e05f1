"""`memfold reproduce` finds experiments, runs them apart, and tells broken from failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memfold.audit.reproduce import available, checkout, run_experiments
from memfold.types import InputError

ROOT = Path(__file__).parents[2]
EXPERIMENT = '''"""{doc}

More about it."""
from pathlib import Path
from experiments.kit import main


def experiment(run):
{body}


if __name__ == "__main__":
    main(experiment, __file__)
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with the kit and four experiments."""
    bodies = {
        "good": '    run.claim("a", "b", (1.0, 0.5, 2.0), above=0.0)\n'
        '    run.claim("c", "d", (1.0, 0.5, 2.0), below=0.0, reason="<b>so</b>")',
        "broken": '    raise RuntimeError("deep inside")',
        "refused": '    from memfold.types import InputError\n    raise InputError("no data")',
        "long": "    import time\n    (run.out / 'began').touch()\n    time.sleep(60)",
    }
    for name, body in bodies.items():
        folder = tmp_path / "experiments" / name
        folder.mkdir(parents=True)
        text = EXPERIMENT.format(doc=f"The {name} one,\nin short.", body=body)
        (folder / "run.py").write_text(text)
    (tmp_path / "experiments" / "other").mkdir()
    (tmp_path / "experiments" / "other" / "run.py").write_text("print('no experiment')")
    kit = (ROOT / "experiments" / "kit.py").read_text()
    (tmp_path / "experiments" / "kit.py").write_text(kit)
    return tmp_path


def command(root: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a checkout."""
    return subprocess.run(
        [sys.executable, "-m", "memfold", "reproduce", *argv],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def test_experiments_are_listed_with_their_first_line(root: Path) -> None:
    found = available(root)
    assert list(found) == ["broken", "good", "long", "refused"]
    assert found["good"] == "The good one, in short."


def test_a_claim_that_fails_is_no_error(root: Path, tmp_path: Path) -> None:
    outcomes = run_experiments(["good"], root, tmp_path / "out", quick=True, quiet=True)
    assert outcomes[0].code == 0
    assert [c["outcome"] for c in outcomes[0].claims] == ["holds", "fails"]
    facts = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert facts["good"]["claims"] == outcomes[0].claims
    text = (tmp_path / "out" / "claims.md").read_text()
    assert "## good" in text
    assert "**fails**" in text


def test_what_breaks_is_told_apart_and_costs_the_others_nothing(root: Path, tmp_path: Path) -> None:
    names = ["broken", "good", "refused"]
    ended = []
    outcomes = run_experiments(names, root, tmp_path / "o", workers=2, ended=ended.append)
    assert [o.name for o in outcomes] == names
    assert [o.code for o in outcomes] == [1, 0, 2]
    assert {o.name for o in ended} == set(names)
    assert outcomes[0].log is not None
    assert "deep inside" in outcomes[0].log.read_text()
    assert outcomes[2].log is not None
    assert outcomes[2].log.read_text().splitlines()[-1] == "refused: no data"
    assert len(outcomes[1].claims) == 2


def test_the_command_line(root: Path, tmp_path: Path) -> None:
    listed = command(root)
    assert "good" in listed.stdout
    done = command(root, "good", "--quick", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "fails: c: d 1 [0.5, 2], wanted < 0" in done.stdout
    assert "1 hold, 0 open, 1 fail" in done.stdout
    broken = command(root, "broken", "--out", str(tmp_path / "out"))
    assert broken.returncode == 70
    unknown = command(root, "circel")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("memfold: no experiment 'circel'; there are broken, good")
    assert unknown.stderr.count("\n") == 1


def test_without_a_checkout_the_error_says_what_to_do(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="clone memfold's repository"):
        checkout(tmp_path / "nowhere")
    with pytest.raises(InputError, match="--workers 0"):
        run_experiments(["good"], root, tmp_path, workers=0)


def test_an_experiment_ends_with_a_command_that_was_killed(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "memfold", "reproduce", "long", "--out", str(out)]
    process = subprocess.Popen(argv, cwd=root)
    waited = time.monotonic() + 60
    while not (out / "long" / "began").exists() and time.monotonic() < waited:
        time.sleep(0.1)
    assert (out / "long" / "began").exists()
    children = Path(f"/proc/{process.pid}/task")
    if not children.exists():
        process.kill()
        pytest.skip("no /proc here to find the child by")
    texts = [(task / "children").read_text().split() for task in children.iterdir()]
    child = int(next(pid for text in texts for pid in text))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    waited = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < waited:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
