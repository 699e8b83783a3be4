"""Fetch an archive so that it can be interrupted, check it, and unpack nothing but plain files."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import Any

from speechssl.errors import DataError

log = logging.getLogger(__name__)
_BLOCK_BYTES = 1 << 20


def fetch(url: str, file: Path, sha256: str | None) -> Path:
    """Download `url` to `file`, going on where an earlier try stopped.

    Where nobody publishes a checksum (`sha256` None), the length the server states is checked here
    and the archive's own checksums when it is unpacked.
    Raises DataError when the network fails or the checksum differs (the file is then removed).
    """
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    if not (part.exists() and sha256 and _sha256(part) == sha256):
        _download(url, part)
    got = _sha256(part) if sha256 else None
    if got != sha256:
        part.unlink()
        raise DataError(
            f"{url}: sha256 is {got}, expected {sha256}; the partial file was removed, try again"
        )
    part.replace(file)
    return file


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive below `folder`, once: `ARCHIVE.completed` in `folder` marks the end.

    Raises DataError for members that are neither files nor folders, or that lead outside.
    """
    mark = folder / f"{archive.name}.completed"
    if mark.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    log.info("unpacking %s", archive)
    # Python 3.11.0 to 3.11.3 know no filters; what lies below them is checked in the loop.
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise DataError(f"{archive}: member '{member.name}' leads outside the folder")
                if not (member.isfile() or member.isdir()):
                    raise DataError(f"{archive}: member '{member.name}' is no plain file or folder")
                tar.extract(member, folder, **safely)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive}: cannot unpack it: {error}; remove it and try again") from error
    mark.touch()


def _download(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    log.info("downloading %s%s", url, f" from byte {have}" if have else "")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            goes_on = have and answer.status == 206  # else the server starts from the first byte
            with part.open("ab" if goes_on else "wb") as out:
                shutil.copyfileobj(answer, out, _BLOCK_BYTES)
            promised = answer.headers.get("Content-Length")  # of what was still to come
    except (urllib.error.URLError, OSError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:
            return  # nothing left to send; the checksum decides
        raise DataError(
            f"{url}: download failed: {error}; the same command goes on where this one stopped"
        ) from error
    size = part.stat().st_size
    expected = size if promised is None else int(promised) + (have if goes_on else 0)
    if size != expected:  # http.client ends quietly when the connection breaks off
        raise DataError(
            f"{url}: got {size} bytes, expected {expected}; "
            "the same command goes on where this one stopped"
        )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
