"""Does work on many items in as many threads as there are cores."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from kdcompress.cores import granted_cores
from kdcompress.data.raw import OnProgress

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    what: str,
    progress: OnProgress | None,
    threads: int | None = None,
) -> list[Result]:
    """Returns the result of each item; for work that leaves Python's lock, such as Pillow's.

    Args:
        work: Called in a thread; an error of it is raised here.
        items: In any number.
        what: Task, for `progress`.
        progress: Called in this thread with the number of items done.
        threads: Number of threads; None: one per core.
    """
    results: dict[int, Result] = {}
    ends: queue.SimpleQueue[Callable[[], tuple[int, Result]]] = queue.SimpleQueue()
    rest, taking, stopped = iter(enumerate(items)), threading.Lock(), threading.Event()

    def work_on() -> None:
        while not stopped.is_set():
            with taking:
                number, item = next(rest, (-1, None))
            if number < 0:
                return
            try:
                ends.put(_returning((number, work(item))))  # type: ignore[arg-type]
            except BaseException as error:
                ends.put(_raising(error))

    for _ in range(min(threads or granted_cores(), len(items))):
        # Daemons: an interrupt leaves without waiting for one that hangs in a read.
        threading.Thread(target=work_on, daemon=True).start()
    try:
        for done in range(1, len(items) + 1):
            number, result = ends.get()()
            results[number] = result
            if progress:
                progress(what, done, len(items))
    finally:
        stopped.set()  # after an error the others end with their present item
    return [results[number] for number in range(len(items))]


def _returning(end: tuple[int, Result]) -> Callable[[], tuple[int, Result]]:
    return lambda: end


def _raising(error: BaseException) -> Callable[[], tuple[int, Result]]:
    def end() -> tuple[int, Result]:
        raise error

    return end
