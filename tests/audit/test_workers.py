"""Workers end with what started them, and say nothing of a Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memfold.audit.workers import run_parallel

ROOT = Path(__file__).parents[2]
# A command with two workers, one quick job and slow ones; it says when the first result is there.
SCRIPT = """
import multiprocessing, os, sys, time
from memfold.audit.workers import run_parallel
from memfold.cli._boundary import bounded
from tests.audit.test_workers import begin, work

def command():
    for pid in run_parallel(work, [0.0, 60.0, 60.0], workers=2, begin=begin, arguments=()):
        for child in multiprocessing.active_children():
            print(child.pid, flush=True)
        print("ready", flush=True)
    return 0

if __name__ == "__main__":
    sys.exit(bounded(command, ["bench"]))
"""


def begin():
    pass


def work(seconds):
    if seconds < 0:
        raise ValueError("a job failed")
    time.sleep(seconds)
    return os.getpid()


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pids, within=10.0):
    end = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        # Ctrl-C goes to the whole group: the workers get it too, and say nothing.
        (signal.SIGINT, 130, "memfold: stopped by Ctrl-C; run the same command again to go on"),
        (signal.SIGTERM, 143, "memfold: stopped by SIGTERM; run the same command again to go on"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_workers_end_with_a_stopped_command(number, code, words, tmp_path):
    script = tmp_path / "command.py"
    script.write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=env, start_new_session=True,
    )  # fmt: skip
    pids = []
    while (line := process.stdout.readline().strip()) not in ("ready", ""):
        pids.append(int(line))
    assert len(pids) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert gone(pids)
    if number != signal.SIGKILL:  # Python's own tracker of resources speaks up after that
        (line,) = err.splitlines()
        assert line.startswith(words)


def test_a_failed_job_is_raised():
    results = run_parallel(work, [-1.0, 30.0], workers=2, begin=begin, arguments=())
    start = time.monotonic()
    with pytest.raises(ValueError, match="a job failed"):
        list(results)
    assert time.monotonic() - start < 30  # the other job is not waited for
