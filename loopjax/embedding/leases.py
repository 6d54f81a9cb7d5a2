"""Who works on what, agreed on through small files in one folder and nothing else.

A lease is a file that is made exclusively and that its holder rewrites every few seconds. Whoever
has watched one stay the same for as long as it says, by its own clock, removes it; no two clocks
are compared, so wrong ones do no harm. A lease saves work and promises nothing: a holder that was
only slow may still finish, which is why what workers write is the same whoever writes it.
"""

import contextlib
import time
import uuid
from pathlib import Path

from loopjax.errors import WriteError
from loopjax.io import require_name
from loopjax.io.locks import create
from loopjax.io.remote import is_remote, listed

WATCH_S = 0.2
BEATS = 6  # in the time after which a lease expires


class Leases:
    """This worker's leases, and what it has seen of those of others."""

    def __init__(self, folder: Path, expire_s: float):
        """Holds none.

        Args:
            folder: of the leases; made where it is missing.
            expire_s: when this worker's leases did not change for so long, they are nobody's.

        Raises:
            WriteError: the folder cannot be made.
        """
        self._folder, self._expire_s = folder, expire_s
        self._worker = uuid.uuid4().hex
        self.name = f"worker-{self._worker[:8]}"  # of a lease that stands for the worker itself
        self._held: set[str] = set()
        self._n_beats = 0
        self._last_beat_s = time.monotonic()
        self._seen: dict[str, tuple[bytes, float]] = {}  # content, since when it is that
        if is_remote(folder):
            return
        require_name(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"cannot write {folder}: {error.strerror or error}") from None

    def present(self) -> set[str]:
        """Names of all leases, whoever holds them."""
        return {path.name for path in listed(self._folder, "*")}

    def take(self, name: str) -> bool:
        """Takes a lease, unless somebody holds it.

        Raises:
            WriteError: the folder cannot be written.
        """
        taken = create(self._folder / name, self._content())
        if taken:
            self._held.add(name)
        return taken

    def release(self, name: str) -> None:
        """Hands a lease back, if it is still this worker's."""
        self._held.discard(name)
        if (self._read(name) or b"").startswith(self._worker.encode()):
            self._remove(name)

    def release_all(self) -> None:
        """Hands everything back."""
        for name in sorted(self._held):
            self.release(name)

    def beat(self) -> None:
        """Shows the others, now and then, that this worker is alive."""
        now_s = time.monotonic()
        if now_s - self._last_beat_s < self._expire_s / BEATS:
            return
        self._last_beat_s = now_s
        self._n_beats += 1
        for name in sorted(self._held):
            if not (self._read(name) or b"").startswith(self._worker.encode()):
                self._held.discard(name)  # taken for dead
                continue
            with contextlib.suppress(OSError):
                (self._folder / name).write_bytes(self._content())

    def remove_expired(self) -> set[str]:
        """Removes what has not changed for too long, and returns the leases that are left.

        Call it again and again: only what this worker has watched itself counts.
        """
        left = self.present()
        now_s = time.monotonic()
        self._seen = {name: seen for name, seen in self._seen.items() if name in left}
        for name in left - self._held:
            content = self._read(name)
            if content is None:
                continue
            before, since_s = self._seen.get(name, (None, now_s))
            if content != before:
                self._seen[name] = (content, now_s)
            elif now_s - since_s > self._expiry_s(content):
                self._remove(name)
        return {name for name in left if name in self._held or (self._folder / name).exists()}

    def all_dead(self) -> bool:
        """Waits until the leases of others have expired; False once one shows life."""
        first = {name: self._read(name) for name in self.present()}
        while left := self.remove_expired() - self._held:
            for name in left:
                if self._read(name) not in (None, first.get(name)):
                    return False
            time.sleep(WATCH_S)
        return True

    def _expiry_s(self, content: bytes) -> float:
        """What a lease says; where it was cut short, what this worker would say."""
        try:
            return float(content.split()[2])
        except (IndexError, ValueError):
            return self._expire_s

    def _content(self) -> bytes:
        return f"{self._worker} {self._n_beats} {self._expire_s:g}\n".encode()

    def _read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            return None

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._folder / name).unlink()
