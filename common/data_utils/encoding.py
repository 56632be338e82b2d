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
_FEW = 3
# Running Chinese text has over a third of these; wrongly decoded text a few hundredths.
_FREQUENT_SHARE = 0.1
_FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种"
    "事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日者意无力它与长把机十民第"
    "公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应向头文体相见被利什二等产或新己制身果加月话合回代内信"
    "表化老给世位次度门任常先通教原东提立及比员解水名真论处走义各入几口认条平系气题活更别打变四总何电数安少才结反受目"
)


def open_bytes(path: Path, packed: bool) -> IO[bytes]:
    """The file's bytes, unpacked when `packed` (gzip)."""
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def unpack_error(path: Path, problem: Exception) -> DataError:
    """The one line for a gzip file that ends early or is no gzip file."""
    return DataError(f"{path}: broken gzip file ({problem}); fetch it again")


def detect_encoding(path: Path, packed: bool = False) -> str:
    """Python's name of the encoding: utf-8, utf-8-sig, utf-16, utf-16-le, utf-16-be, utf-32, gb18030

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
    """UTF-16 without a mark: ASCII characters (JSON has many) leave zeros on one side."""
    pairs = len(head) // 2
    if pairs < 2:
        return None
    even, odd = head[: pairs * 2 : 2].count(0), head[1 : pairs * 2 : 2].count(0)
    for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        # some other characters have a zero too: U+4E00 on the low side
        if zeros > 0.2 * pairs and zeros > 4 * others and _decodes(head, name):
            return name
    return None


def _narrow(sample: bytes, path: Path) -> str:
    if _decodes(sample, "utf-8"):
        return "utf-8"
    foreign = [line for line in sample.split(b"\n")[:-1] if not line.isascii()]
    sound = sum(_decodes(line, "utf-8") for line in foreign)
    if foreign and sound * 2 >= len(foreign):
        return "utf-8"  # with some damaged rows, which will be named
    if _decodes(sample, "gb18030") and _reads_chinese(sample.decode("gb18030", "ignore")):
        return "gb18030"
    if sum(byte > 0x7F for byte in sample) <= _FEW:
        return "utf-8"  # too little to tell an encoding from a damaged row
    raise DataError(
        f"{path}: its text is neither UTF-8, UTF-16 nor GB18030; name its encoding with --encoding, "
        "for example cp1252 (Western), big5, shift_jis, euc_kr"
    )


def _decodes(sample: bytes, encoding: str) -> bool:
    """Whether the sample decodes, allowing for a character cut at its end."""
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(sample, False)
    except UnicodeDecodeError:
        return False
    return True


def _reads_chinese(text: str) -> bool:
    """Whether text decoded as GB18030 is Chinese: Korean and Big5 bytes decode too, but to nonsense."""
    foreign = [char for char in text if char > "\x7f"]
    chinese = sum("\u4e00" <= char <= "\u9fff" for char in foreign)
    marks = sum("\u3000" <= char <= "\u303f" or "\uff00" <= char <= "\uffef" for char in foreign)
    common = sum(char in _FREQUENT for char in foreign)
    return chinese + marks > 0.8 * len(foreign) and common > _FREQUENT_SHARE * chinese
