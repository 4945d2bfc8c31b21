"""Pictures known by their first bytes, whatever a file is called: those of pgsr.pictures.FORMATS."""

from __future__ import annotations

import re

HEAD_BYTES = 64  # of a file, that tell whether it is a picture

_HEAD = re.compile(
    rb"\x89PNG\r\n\x1a\n"
    rb"|\xff\xd8\xff"  # JPEG, MPO
    rb"|RIFF....WEBP"
    rb"|BM....\0\0\0\0....[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"  # BMP, with the sizes its header may have
    rb"|II[*+]\0|MM\0[*+]"  # TIFF, BigTIFF
    rb"|GIF8[79]a"
    rb"|P[1-6][ \t\r\n]+[0-9#]"  # PPM and its kin
    rb"|\0\0\0\x0cjP {2}\r\n\x87\n|\xff\x4f\xff\x51"  # JPEG 2000, its codestream
    rb"|....ftyp(avif|avis|(mif1|msf1|miaf)....(.{4})*?avi[fs])",
    re.DOTALL,
)


def begins_like_picture(head: bytes) -> bool:
    """Returns whether the first `HEAD_BYTES` of a file are those of a picture; TGA has none of its own."""
    return _HEAD.match(head) is not None
