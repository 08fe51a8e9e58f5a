"""Folders packed to be carried: tar in xz, in pieces of at most a size, checked when unpacked.

xz holds a SHA-256 of all that is in it, so a pack that is cut off or altered is refused as a whole.
`tar xf` reads a pack too (`cat NAME.tar.xz.* | tar xJ` one in pieces).
"""

from __future__ import annotations

import glob
import io
import lzma
import os
import re
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pidm_core.data import find_keypoints, read_market1501
from pidm_core.files import BAD_DATA, UserError, refuse_way_out, write_bytes
from pidm_core.folders import LEFTOVER

PARTS = {"train": ("bounding_box_train",), "test": ("query", "bounding_box_test")}
"""What a training needs of Market-1501, and what its test needs besides."""
LIMIT_BYTES = 1 << 30  # of all that is in a pack, and of the pack itself
_DECODER_BYTES = 256 << 20
_END = bytes(2 * tarfile.BLOCKSIZE)  # of every tar; tarfile itself does not miss it
_PIECE = re.compile(r"\.(\d{1,3}of\d{1,3})")


def market_files(root: str | Path, part: str) -> dict[str, Path]:
    """The files of a part of a Market-1501 root, by the names that they have in its layout.

    Images, their joints, and the note by which drawn people are known.
    Raises UserError (BAD_DATA) for what is missing; query and gallery may lack their joints.
    """
    files = {}
    for subset in PARTS[part]:
        for record in read_market1501(root, subset):
            files[f"{subset}/{record.name}"] = record.path
    try:
        joints = find_keypoints(root, subset)
        files[joints.name] = joints
    except UserError:
        if part == "train":
            raise
    note = record.path.resolve().parent.parent / "toy_market.json"
    return files | {note.name: note} if note.is_file() else files


def write_pack(path: Path, files: Mapping[str, Path], *, mib: int) -> list[Path]:
    """Pack files under names of their own; the paths written: one, or pieces of at most `mib` MiB.

    The same files give the same bytes. Pieces are called NAME.1of2, NAME.2of2.
    """
    if mib < 1:
        raise UserError(f"mib {mib}: a file must have room for 1 MiB at least")
    if (
        sum(file.stat().st_size + 1024 for file in files.values())
        >= LIMIT_BYTES - tarfile.RECORDSIZE
    ):
        raise UserError(
            f"{path}: {len(files):,} files of over {LIMIT_BYTES >> 20} MiB, which no slot unpacks; "
            "copy them to the machine in another way"
        )
    buffer = io.BytesIO()
    with (
        lzma.open(buffer, "wb", check=lzma.CHECK_SHA256) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, file in sorted(files.items()):
            data, info = file.read_bytes(), tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    data, size = buffer.getvalue(), mib << 20
    count = -(-len(data) // size)
    paths = [path]
    if count > 1:
        paths = [path.with_name(f"{path.name}.{k}of{count}") for k in range(1, count + 1)]
    for k, piece in enumerate(paths):
        write_bytes(piece, data[k * size : (k + 1) * size])
    for old in {path, *_numbered(path)} - {*paths}:  # last: on a full disk the old pack stays
        old.unlink(missing_ok=True)
    return paths


def pieces(path: Path) -> list[Path]:
    """The files of a pack: itself, or all its pieces in order; [] while one of them is missing."""
    if path.is_file():
        return [path]
    found = _numbered(path)
    whole = [f".{k}of{len(found)}" for k in range(1, len(found) + 1)]
    return found if [piece.suffix for piece in found] == whole else []


def _numbered(path: Path) -> list[Path]:
    found = [
        p for p in path.parent.glob(f"{glob.escape(path.name)}.*") if _PIECE.fullmatch(p.suffix)
    ]
    return sorted(found, key=lambda p: int(p.suffix[1:].partition("of")[0]))


def unpack(path: Path, root: Path) -> list[Path]:
    """Unpack into a folder what it does not have yet; the new files and folders right in it.

    Each is there whole or not at all; what is there stays as it is.
    Raises UserError (BAD_DATA) for a pack that is cut off, altered or over 1 GiB, and for one with
    anything but plain files or with a name that leads out of the folder; then nothing is unpacked.
    """
    files = _read(path)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=LEFTOVER) as home:
        for name, data in files.items():
            file = Path(home, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        os.sync()  # once, not for each of 20,000 images
        entries = sorted(Path(home).iterdir(), key=Path.is_dir)  # joints before their images
        new = [entry for entry in entries if not (root / entry.name).exists()]
        return [entry.rename(root / entry.name) for entry in new]


def _read(path: Path) -> dict[str, bytes]:
    """The files of a pack by name, all checked."""
    try:
        with tarfile.open(fileobj=io.BytesIO(_content(path)), mode="r:") as archive:
            return {member.name: _data(archive, member, path) for member in archive}
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a pack of files ({error})", BAD_DATA) from error


def _content(path: Path) -> bytes:
    """What xz holds, its SHA-256 checked; never more than the limit is unpacked."""
    found = pieces(path)
    if not found or sum(piece.stat().st_size for piece in found) > LIMIT_BYTES:
        raise UserError(f"{path}: no such pack, or one over {LIMIT_BYTES >> 20} MiB", BAD_DATA)
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DECODER_BYTES)
    try:
        content = decoder.decompress(b"".join(piece.read_bytes() for piece in found), LIMIT_BYTES)
    except lzma.LZMAError as error:
        raise UserError(
            f"{path}: altered, or no pack ({error}); carry it again", BAD_DATA
        ) from error
    if len(content) == LIMIT_BYTES:
        raise UserError(f"{path}: larger than {LIMIT_BYTES >> 20} MiB inside, refused", BAD_DATA)
    if not (decoder.eof and content.endswith(_END)) or decoder.unused_data:
        raise UserError(f"{path}: cut off, or not one pack; carry it again", BAD_DATA)
    return content


def _data(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    refuse_way_out(member.name, str(path))
    file = archive.extractfile(member) if member.type == tarfile.REGTYPE else None
    if file is None or member.issparse():  # whose holes would fill the memory
        raise UserError(f"{path}: {member.name[:80]!r} is not a plain file, refused", BAD_DATA)
    return file.read()
