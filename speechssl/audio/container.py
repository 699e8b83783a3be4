"""Tell whether a file holds all the bytes its own header promises.

libsndfile clips the length of a cut WAV, AIFF, AU, W64, NIST or Ogg file to what is there and says
nothing, so a copy that broke off would train as a shorter recording. FLAC and MP3 fail while being
decoded and need no check here.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

# Programs that write to a pipe cannot know the length and put a huge number in its place.
_UNKNOWN_BYTES = 0x7FFF_0000
_OGG_PAGE_BYTES = 65_307  # the longest page the format allows (RFC 3533, section 6)


def missing_bytes(path: str | Path) -> int:
    """How many bytes of sound the header promises beyond the end of the file; 0 when all is there.

    An Ogg file whose last page is not marked as the end of its stream counts as 1 byte short.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(4)
        if magic in (b"RIFF", b"RF64", b"RIFX", b"FORM"):
            return _chunked(file, size, magic)
        if magic == b".snd":
            return _au(file, size)
        if magic == b"riff":
            return _w64(file, size)
        if magic == b"NIST":
            return _nist(file, size)
        if magic == b"OggS":
            return _ogg(file, size)
    return 0


def _short(promised: int, found: int) -> int:
    return 0 if promised >= _UNKNOWN_BYTES and found > 0 else max(0, promised - found)


def _chunked(file: BinaryIO, size: int, magic: bytes) -> int:
    """WAV, RF64 and AIFF: chunks of (name, length, body); the sound is in `data` or `SSND`."""
    order = "<" if magic in (b"RIFF", b"RF64") else ">"
    long_data = 0
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        body = position + 8
        if name == b"ds64":
            long_data = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
        if name in (b"data", b"SSND"):
            found = size - body
            if magic == b"RF64" and length == 0xFFFF_FFFF:
                return max(0, long_data - found)
            return _short(length, found)
        position = body + length + length % 2
    return 0


def _au(file: BinaryIO, size: int) -> int:
    fields = file.read(8)
    if len(fields) < 8:
        return 0
    offset, length = struct.unpack(">II", fields)
    return _short(length, size - offset)


def _w64(file: BinaryIO, size: int) -> int:
    file.seek(16)
    field = file.read(8)
    return max(0, struct.unpack("<Q", field)[0] - size) if len(field) == 8 else 0


def _nist(file: BinaryIO, size: int) -> int:
    """SPHERE: a text header of `name -type value` lines; only plain (not shortened) sound."""
    file.seek(0)
    lines = file.read(1024).decode("latin-1").splitlines()
    values = {p[0]: p[2] for line in lines if len(p := line.split(None, 2)) == 3}
    if values.get("sample_coding", "pcm").strip() not in ("pcm", "ulaw", "alaw"):
        return 0
    try:
        promised = int(values["sample_count"]) * int(values["sample_n_bytes"])
        promised *= int(values.get("channel_count", "1"))
        return _short(promised, size - int(lines[1]))
    except (KeyError, ValueError, IndexError):
        return 0


def _ogg(file: BinaryIO, size: int) -> int:
    start = max(0, size - 2 * _OGG_PAGE_BYTES)
    file.seek(start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    while page >= 0:
        header = tail[page : page + 27]
        if len(header) == 27 and header[4] == 0:
            table = tail[page + 27 : page + 27 + header[26]]
            end = page + 27 + header[26] + sum(table)
            ends_stream = bool(header[5] & 4)
            return max(0, end - len(tail)) or (0 if ends_stream else 1)
        if len(header) < 27:
            return 27 - len(header)
        page = tail.rfind(b"OggS", 0, page)
    return 0
