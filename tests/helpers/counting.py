"""A backend that counts what is read of packs."""

import threading
from concurrent.futures import ThreadPoolExecutor

from cas_checkpoint.backends import LocalBackend


class Counting(LocalBackend):
    """Counts what is read of packs, and by which threads; may say that it is far away."""

    def __init__(self, root, *, near=True):
        super().__init__(root, durable=False)
        self.requests, self.threads, self.lock = [], set(), threading.Lock()
        self.is_near = near

    @property
    def near(self):
        return self.is_near

    def read_into(self, key, offset, buffer):
        if key.startswith("packs/"):
            with self.lock:
                self.requests.append(len(buffer))
                self.threads.add(threading.current_thread().name.rpartition("_")[0])
        super().read_into(key, offset, buffer)


def read_at_once(read):
    """Let four threads read, each with a number of its own; raise what goes wrong in any."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
