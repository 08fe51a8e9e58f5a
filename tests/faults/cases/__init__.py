"""Bad inputs by name: what is read, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

READ = str(Path(__file__).parents[1] / "read.py")
DONE, SKIPPED, USAGE, BAD_DATA, ENVIRONMENT = range(5)
Files = Mapping[str, bytes | str] | Callable[[Path], object]
"""Contents by file name, or what writes them into an empty folder."""


@dataclass(frozen=True)
class Case:
    """One bad (or odd) input, in a process of its own."""

    name: str
    files: Files
    command: tuple[str, ...]
    code: int
    says: str  # in the one line of the error; or in what is printed, where all goes on

    def make(self, folder: Path) -> None:
        """Write its files."""
        if callable(self.files):
            self.files(folder)
            return
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def reading(kind: str, *paths: str) -> tuple[str, ...]:
    """The command that reads something; see faults/read.py."""
    return (READ, kind, *paths)


def sparse(name: str, size: int) -> Callable[[Path], None]:
    """Writes a file of that many bytes that takes no room."""

    def write(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return write
