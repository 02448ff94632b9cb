"""How far a tool is, for a person: at a terminal one line that moves, elsewhere a line now and then."""

import sys
import time
from typing import TextIO


class Progress:
    """Writes to `stream`, stderr by default. `every_s`: seconds between two lines where there is no terminal."""

    def __init__(self, stream: TextIO | None = None, every_s: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._moves = self._stream.isatty()
        self._every_s = every_s
        self._next = time.monotonic() + every_s

    def show(self, text: str) -> None:
        """Show a short line in place of the last one."""
        if self._moves:
            self._stream.write(f"\r{text}\x1b[K")
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_s
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Take the line that moves away."""
        if self._moves:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
