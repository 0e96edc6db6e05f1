"""Processes that share a list of jobs, and end with the command that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_parallel(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    begin: Callable[..., None],
    arguments: tuple[Any, ...],
) -> Generator[Result, None, None]:
    """Do jobs in processes of their own, and give the results in the order of the jobs.

    A stopped command, or one whose job fails, takes its workers with it at once; a Ctrl-C is the
    command's alone, and a killed command leaves none behind.

    Args:
        work: does one job; importable by its name.
        jobs: what is to be done.
        workers: processes.
        begin: called once in each worker, to load what it needs.
        arguments: of `begin`.

    Yields:
        What `work` returns.
    """
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), context, initializer=_start, initargs=(begin, arguments)
    )
    try:
        with _unheard():
            futures: list[Future[Result]] = [pool.submit(work, job) for job in jobs]
        for future in futures:
            yield future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        own = set(multiprocessing.active_children()) - others
        _end(own)
        raise
    pool.shutdown()


def _start(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Begin a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    begin(*arguments)


def _end_with(parent: Any) -> None:
    """End this worker when the command that started it is gone, even if it was killed."""
    parent.join()
    os._exit(1)


def _end(children: Iterable[Any]) -> None:
    for child in children:
        child.terminate()
    for child in children:
        child.join(5)
        if child.is_alive():
            child.kill()


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started inside the block: they inherit what is masked."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
