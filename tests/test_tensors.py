"""What every room relies on: memory, devices, generators."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memfold.audit.measure import with_less_memory
from memfold.tensors import check_device, is_out_of_memory
from memfold.types import InputError

OUT = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 4 bytes. Error code 12 (Cannot allocate)"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    RuntimeError("std::bad_alloc"),
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]  # fmt: skip
OTHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("out of memory lane"),
    KeyError("memory"),
]


@pytest.mark.parametrize("error", OUT, ids=lambda e: str(e)[:40] or type(e).__name__)
def test_a_batch_is_halved_whatever_the_words_for_no_memory(error, capsys):
    sizes = []

    def run(size):
        sizes.append(size)
        if size > 8:
            raise error
        return size

    assert is_out_of_memory(error)
    assert with_less_memory(32, run) == 8
    assert sizes == [32, 16, 8]
    with pytest.raises(type(error)):
        with_less_memory(1, lambda size: (_ for _ in ()).throw(error))


@pytest.mark.parametrize("error", OTHER, ids=repr)
def test_other_errors_are_no_want_of_memory(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        with_less_memory(32, lambda size: (_ for _ in ()).throw(error))


def test_the_allocator_of_this_machine_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)


def test_devices():
    assert check_device("cpu") == torch.device("cpu")
    for name in ("foo", "cpu:x", "meta", "cuda:99"):
        with pytest.raises(InputError, match=f"--device {name} cannot be used .*choose from cpu"):
            check_device(name)


# Every public function with a generator, called with the number 0 where one is meant, and None for
# whatever else it needs: the generator is looked at first, or the other faults are InputErrors too.
SCRIPT = """
import importlib, inspect, json, pkgutil
import memfold
from memfold.types import InputError
import torch
answers = {}
x = torch.zeros(2, 4)
def D(x, sigma): return x / 2
def given(name, kind):
    known = {"denoiser": D, "x": x, "z": x, "sigma": 0.1, "decoder": lambda z: z, "n": 4,
             "ambient": 6, "dim": 2, "dims": (2,), "sampler": lambda n, generator: x,
             "sample": lambda n, g: x}
    return known.get(name)
for module in pkgutil.walk_packages(memfold.__path__, "memfold."):
    if any(part.startswith("_") for part in module.name.split(".")): continue
    room = importlib.import_module(module.name)
    for name, function in vars(room).items():
        if name.startswith("_") or not inspect.isfunction(function): continue
        if function.__module__ != room.__name__: continue
        parameters = inspect.signature(function).parameters
        if "generator" not in parameters: continue
        needed = [p for p in parameters.values() if p.default is p.empty and p.name != "generator"
                  and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        try:
            function(**{p.name: given(p.name, p.kind) for p in needed}, generator=0)
            answers[f"{room.__name__}.{name}"] = "accepted"
        except InputError as error:
            answers[f"{room.__name__}.{name}"] = f"InputError: {error}"
        except Exception as error:
            answers[f"{room.__name__}.{name}"] = f"{type(error).__name__}: {error}"
from memfold.memorization.detectors import DETECTORS
for name, detector in DETECTORS.items():
    try:
        detector(None, generator=0)
    except Exception as error:
        answers[name] = f"{type(error).__name__}: {error}"
print(json.dumps(answers))
"""


def test_a_seed_where_a_generator_is_meant_is_refused_everywhere():
    """Outside pytest's type checks.

    A detector is called by its registry entry, and a mitigation by `mitigate`: they check.
    """
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    answers = json.loads(found.stdout)
    behind = ("memfold.memorization.detectors.", "memfold.mitigation.")
    public = {k: v for k, v in answers.items() if not k.startswith(behind)}
    public["mitigate"] = answers["memfold.mitigation.mitigate"]
    refused = [v for v in public.values() if "pass torch.Generator().manual_seed(0)" in v]
    wrong = {k: v for k, v in public.items() if not v.startswith("InputError")}
    assert len(refused) > 40  # the others found another fault first
    assert wrong == {}
