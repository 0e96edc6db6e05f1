"""Every row of the table of bad inputs: exit code 2, one line, nothing left behind."""

import pytest

from .bad_inputs import COMMANDS, PYTHON, fault, run_command, run_python, world


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
