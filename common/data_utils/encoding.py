"""Which encoding is this text file in? A byte-order mark, else proof by decoding; never a silent guess."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path
from typing import IO

from common.data_utils.errors import DataError

_BLOCK = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A file is UTF-8 with some broken rows, rather than another encoding, when nearly all of it decodes.
_BROKEN_SHARE = 0.1
_FEW = 3


def open_bytes(path: Path, packed: bool) -> IO[bytes]:
    """The file's bytes, unpacked when `packed` (gzip)."""
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def unpack_error(path: Path, problem: Exception) -> DataError:
    """The one line for a gzip file that ends early or is no gzip file."""
    return DataError(f"{path}: broken gzip file ({problem}); fetch it again")


def detect_encoding(path: Path, packed: bool = False) -> str:
    """Python's name of the encoding: utf-8, utf-8-sig, utf-16, utf-16-le/-be, utf-32, gb18030, ...

    A file of ASCII only is read to its end, so that one foreign byte in the last row is found too.

    Raises:
        DataError: no encoding fits, or the gzip stream is broken.
    """
    try:
        with open_bytes(path, packed) as handle:
            head = handle.read(_BLOCK)
            for bom, name in _BOMS:
                if head.startswith(bom):
                    return name
            wide = _wide(head)
            if wide:
                return wide
            sample = head
            while sample and sample.isascii():
                sample = handle.read(_BLOCK)
            if not sample:
                return "utf-8"
            sample += handle.read(_BLOCK)
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise unpack_error(path, problem) from None
    return _narrow(sample, path)


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark: ASCII characters (JSON has many) leave zeros on one side only."""
    pairs = len(head) // 2
    if pairs < 2:
        return None
    even, odd = head[: pairs * 2 : 2].count(0), head[1 : pairs * 2 : 2].count(0)
    if odd > 0.2 * pairs and even < 0.02 * pairs:
        return "utf-16-le"
    if even > 0.2 * pairs and odd < 0.02 * pairs:
        return "utf-16-be"
    return None


def _narrow(sample: bytes, path: Path) -> str:
    if _decodes(sample, "utf-8"):
        return "utf-8"
    text = sample.decode("utf-8", "surrogateescape")[:-3]  # the sample's end may cut a character
    broken = sum("\udc80" <= char <= "\udcff" for char in text)
    sound = sum(char > "\x7f" for char in text) - broken
    if broken < _BROKEN_SHARE * (broken + sound):
        return "utf-8"
    if _decodes(sample, "gb18030") and _mostly_chinese(sample.decode("gb18030", "ignore")):
        return "gb18030"
    if broken <= _FEW and not sound:
        return "utf-8"  # too little to tell an encoding from a damaged row: the rows will be named
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    if best is None:
        raise DataError(f"{path}: its text encoding is not recognised; name it with --encoding")
    return str(best.encoding)


def _decodes(sample: bytes, encoding: str) -> bool:
    """Whether the sample decodes, allowing for a character cut at its end."""
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(sample, False)
    except UnicodeDecodeError:
        return False
    return True


def _mostly_chinese(text: str) -> bool:
    foreign = [char for char in text if char > "\x7f"]
    common = sum(
        "\u4e00" <= char <= "\u9fff" or "\u3000" <= char <= "\u303f" or "\uff00" <= char <= "\uffef"
        for char in foreign
    )
    return bool(foreign) and common > 0.8 * len(foreign)
