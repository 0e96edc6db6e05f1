"""Every row of the table of bad inputs: exit code 2, one line, nothing left behind."""

import shutil

import pytest

from .bad_inputs import CALIBRATE, COMMANDS, PYTHON, fault, run_command, run_python, world


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def answers(root):
    return run_python(root)


def test_the_table_is_long_enough():
    assert len(COMMANDS) + len(PYTHON) > 150


@pytest.mark.parametrize("call", COMMANDS)
def test_a_call_of_the_command_line(call, root):
    assert fault(run_command(call, root), COMMANDS[call]) == ""


@pytest.mark.parametrize("call", PYTHON)
def test_a_call_of_python(call, answers):
    assert fault(answers[call], PYTHON[call]) == ""


def test_a_refused_calibrate_does_not_block_its_corrected_call(root):
    """With one word corrected, the call goes through, without --overwrite."""
    call = f"{CALIBRATE} --alpha 0.2 --steps 2 --quiet --guidance-scale"
    assert run_command(f"{call} 1", root).code == 2
    found = run_command(f"{call} 3", root)
    assert (found.code or 0, found.out, found.err) == (0, "", "")
    assert (root / "band.json").is_file()
    (root / "band.json").unlink()
    shutil.rmtree(root / "band.json.parts")
