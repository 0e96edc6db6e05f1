"""How a command ends: exit codes, one line on stderr, nobody reading, stopped from outside."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer

from memfold import cli
from memfold.cli._app import app
from memfold.cli._boundary import RESUMED, Terminated, bounded
from memfold.types import InputError

COMMANDS = sorted(c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands)
MEMFOLD = (sys.executable, "-m", "memfold")


def ended(error, arguments=("audit",)):
    """The exit code of a command that raises, and what it printed."""

    def work():
        raise error

    return bounded(work, arguments)


def one_line(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("memfold: ")
    return err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("--x = 1; take 2"), 2, "--x = 1; take 2"),
        (TypeError("two\nlines"), 70, "a fault of memfold's own, not yours: TypeError: two lines"),
        (ZeroDivisionError(), 70, "ZeroDivisionError"),
        (OSError(errno.ENOSPC, "Error writing bytes"), 2, "No space left on device; make room"),
        (OSError(errno.EFBIG, "", "out/x"), 2, "out/x: File too large; make room"),
        (PermissionError(errno.EACCES, "", b"dir/x"), 2, "dir/x: Permission denied; mend"),
        (OSError(errno.ECHILD, "No child processes"), 70, "ChildProcessError"),
        (MemoryError(), 2, "memory ran out (MemoryError)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "memory ran"),
        (RuntimeError("shapes cannot be multiplied"), 70, "RuntimeError"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C; run the same command again to go on"),
        (Terminated(), 143, "stopped by SIGTERM; run the same command again to go on"),
        (RecursionError("deep"), 70, "RecursionError"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(error, code, words, capsys):
    assert ended(error) == code
    assert words in one_line(capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_only_what_can_go_on_says_so(command, capsys):
    ended(KeyboardInterrupt(), [command])
    assert ("go on" in one_line(capsys)) == (command in RESUMED)


def test_no_library_error_is_taken_for_what_the_gate_found(capsys):
    """Typer exits with 1 where a pipe broke: 1 means found, and nothing else."""

    def broken():
        app_ = typer.Typer()

        @app_.command()
        def command():
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        return app_(args=[], standalone_mode=False)

    assert bounded(broken, ["audit"]) == 70
    assert "BrokenPipeError" in one_line(capsys)


def test_the_traceback_stands_behind_debug(capsys, monkeypatch):
    ended(TypeError("x"))
    assert "Traceback" not in capsys.readouterr().err
    ended(TypeError("x"), ["audit", "--debug"])
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("MEMFOLD_DEBUG", "1")
    ended(TypeError("x"))
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("memfold: a fault")


def test_what_a_terminal_would_obey_is_not_printed(capsys):
    ended(InputError("\x1b[31mred\x07"))
    assert "\x1b" not in one_line(capsys)


def test_sigterm_stops_a_command(capsys):
    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    assert bounded(work, ["lid"]) == 143
    assert one_line(capsys) == "memfold: stopped by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_inside_a_command(capsys, monkeypatch):
    """Typer turns it into an exit code; the line is there nonetheless."""

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("memfold.audit.survey.data_risk", stopped)
    monkeypatch.setattr("sys.argv", ["memfold", "data-lid", "x"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert one_line(capsys) == "memfold: stopped by Ctrl-C\n"


def test_arguments_that_are_no_text_are_refused_before_the_work(capsys):
    def work():
        raise AssertionError("it began")

    assert bounded(work, ["lid", "\udcff.png"]) == 2
    assert r"'\udcff.png' is no UTF-8 text" in one_line(capsys)


def plain(text):
    """Without the styles that typer writes where PY_COLORS or GITHUB_ACTIONS is set."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def run(arguments, **options):
    return subprocess.run([*MEMFOLD, *arguments], capture_output=True, timeout=60, **options)


def shell(command):
    found = subprocess.run(
        ["bash", "-c", command.replace("memfold", " ".join(MEMFOLD))],
        capture_output=True, timeout=60, text=True,
    )  # fmt: skip
    return found.stdout.strip(), found.stderr.strip()


def test_streams_that_fail():
    """A reader that left is silent; a full disk is one line; closed streams are no crash."""
    out, err = shell(
        "memfold -h | true; echo ${PIPESTATUS[0]};"
        "memfold -h > /dev/full; echo $?;"
        "memfold -h >&-; echo $?;"
        "memfold nope 2>&- <&- >&-; echo $?;"
        "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 memfold lid é; echo $?"
    )
    assert out.split() == ["0", "2", "0", "2", "2"]
    first, second = err.splitlines()
    assert first.startswith("memfold: standard output: No space left on device")
    assert r"'\udcc3\udca9' is no UTF-8 text here" in second


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_same_options(command):
    from typer.main import get_command

    options = {o for p in get_command(app).commands[command].params for o in p.opts}
    assert {"--quiet", "--json", "--half", "--debug"} <= options


@pytest.mark.parametrize("arguments", [["-h"], *([c, "-h"] for c in COMMANDS)])
def test_h_is_help(arguments, capsys, monkeypatch):
    shown = []
    for flag in ("-h", "--help"):
        monkeypatch.setattr("sys.argv", ["memfold", *arguments[:-1], flag])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "Usage: memfold" in plain(shown[0])


def test_completion():
    env = os.environ | {
        "_MEMFOLD_COMPLETE": "complete_bash", "COMP_WORDS": "memfold ca", "COMP_CWORD": "1",
    }  # fmt: skip
    found = run([], env=env)
    assert (found.returncode, found.stdout.split()) == (0, [b"calibrate"])
    assert "--install-completion" in plain(run(["-h"]).stdout.decode())


@pytest.fixture
def images(tmp_path):
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for i in range(30):
        pixels = torch.randint(256, (8, 8), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["memfold", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return (stop.value.code, *capsys.readouterr())


def test_json_is_one_document_and_quiet_prints_nothing(images, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "data-lid", images, "--json")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["rows"]["id"]) == 30
    table = images.parent / "t.csv"
    assert command(monkeypatch, capsys, "data-lid", images, "--quiet", "--out", table) == (
        0,
        "",
        "",
    )
    assert table.exists()
    code, out, err = command(monkeypatch, capsys, "data-lid", images, "--quiet")
    assert "LID" in out  # no file takes it
    code, out, err = command(monkeypatch, capsys, "data-lid", images / "none", "--json")
    assert (code, out) == (2, "")
    assert "none" in err


def test_half_where_no_network_runs_says_so(images, monkeypatch, capsys):
    code, _, err = command(monkeypatch, capsys, "data-lid", images, "--half")
    assert (code, err) == (
        0,
        "Note: memfold data-lid runs no network; --half changes nothing here\n",
    )


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_full_disk_is_one_line_and_leaves_nothing(name, images, tmp_path_factory):
    """A file may not grow beyond 64 bytes: what a full disk says, without one."""
    out = tmp_path_factory.mktemp("out") / name
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64));"
        "sys.dont_write_bytecode = True; from memfold.cli import main; main()"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, "data-lid", images, "--quiet", "--out", out],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert f"{out} cannot be written (File too large); make room" in line
    assert list(out.parent.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_audit_says_how_to_go_on(number, code, tmp_path):
    demo = Path(__file__).parents[2] / "assets/demo"
    process = subprocess.Popen(
        [*MEMFOLD, "audit", demo / "model", "--data", demo / "train.npz", "--train-points",
         "--noises", "5000", "--out", tmp_path / "out", "--quiet"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not list(tmp_path.glob("out/parts/*.parquet")) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    (line,) = err.splitlines()
    assert line.endswith("; run the same command again to go on where it was")
    assert list(tmp_path.glob("out/parts/*.parquet"))
