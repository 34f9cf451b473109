"""Finished stages go to storage while the next one is trained."""

import queue
import threading
from collections.abc import Callable

AT_ONCE = 2
"""Stages at most that are not on storage: one that is being saved, and one whose turn comes next. Who trains faster
than storage takes waits: each of them holds its weights in memory."""


class NotSaved(Exception):
    """A stage could not be put on storage; the cause is another exception."""


class Saver:
    """Runs one job after another in a thread of its own, in the order in which they were given, until one fails."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self._free = threading.Semaphore(AT_ONCE)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, job: Callable[[], None]) -> None:
        """Run a job after those that were given before; waits while there are `AT_ONCE`. Raises `NotSaved`."""
        self._free.acquire()
        self.check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def check(self) -> None:
        """Raise `NotSaved` where a job has failed."""
        if self._error is not None:
            raise NotSaved(str(self._error)) from self._error

    def finish(self) -> None:
        """Wait for all jobs. Those that come after one that failed are not done."""
        self._jobs.join()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                if self._error is None:
                    job()
            except BaseException as error:
                self._error = error
            finally:
                self._free.release()
                self._jobs.task_done()
