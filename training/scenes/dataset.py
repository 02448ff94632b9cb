"""Painted pictures on disk: groups of variants of one layout, as uint8 memory maps; interrupted painting resumes.

The shape is [N, size, size, 3] with N = groups × VARIANTS. Picture i is variant i % VARIANTS of layout i // VARIANTS
(plus the set's first layout), so its scene is known without a table.
"""

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.scenes.painter import paint
from training.scenes.scene import Scene, draw_variants

VARIANTS = 4
HELD_OUT = 10_000_000  # layouts from this number on are not used for training
_CHUNK = 32


@dataclass(frozen=True)
class Pictures:
    """A set of painted pictures: folder, name, side in pixels, number and first of its layouts."""

    folder: Path
    name: str
    size: int
    groups: int
    first: int = 0

    @property
    def count(self) -> int:
        return self.groups * VARIANTS

    def scene(self, index: int) -> Scene:
        """Return the scene of picture `index`."""
        return draw_variants(self.first + index // VARIANTS, VARIANTS)[index % VARIANTS]

    def scenes(self) -> list[Scene]:
        return [s for group in range(self.groups) for s in draw_variants(self.first + group, VARIANTS)]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}-{self.size}.u8"

    def open(self, *, painted: bool = True) -> np.ndarray:
        """Return the pictures, memory mapped. Raises FileNotFoundError before `paint_all` has finished."""
        if painted and not self.path.with_suffix(".done").exists():
            raise FileNotFoundError(self.path)
        return np.memmap(self.path, np.uint8, "r" if painted else "r+", shape=(self.count, self.size, self.size, 3))

    def paint_all(self, processes: int = 2) -> np.ndarray:
        """Paint the missing chunks of 32 pictures, and return the set."""
        done = self.path.with_suffix(".done")
        if done.exists():
            return self.open()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            with self.path.open("wb") as file:
                os.truncate(file.fileno(), self.count * self.size * self.size * 3)
        log = self.path.with_suffix(".log")
        finished = set(log.read_text().split()) if log.exists() else set()
        chunks = [(self, start) for start in range(0, self.count, _CHUNK) if str(start) not in finished]
        with multiprocessing.get_context("spawn").Pool(processes) as pool, log.open("a") as mark:
            for start in pool.imap_unordered(_paint_chunk, chunks):
                mark.write(f"{start}\n")
                mark.flush()
        done.touch()
        return self.open()


def _paint_chunk(job: tuple[Pictures, int]) -> int:
    pictures, start = job
    out = pictures.open(painted=False)
    for index in range(start, min(start + _CHUNK, pictures.count)):
        out[index] = paint(pictures.scene(index), pictures.size, pictures.size)
    return start
