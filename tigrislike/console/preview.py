"""What an object is, by its first bytes: told as text, as an image that a browser may show, as the header of a
safetensors file, or as bytes. Nothing that an object says of itself is believed; everything is bounded.

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

HEAD_BYTES: Final = 64 * 1024
"""How much of an object is looked at."""

MAX_IMAGE_BYTES: Final = 64 * 1024**2
MAX_HEADER_BYTES: Final = 1024**2
"""The longest header of a safetensors file that is shown."""

MAX_TENSORS: Final = 500

_HEX_BYTES: Final = 512
_MAX_METADATA: Final = 100
_MAX_TEXT: Final = 500
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
_FORMAT_MAX_HEADER: Final = 100_000_000
"""What the format itself allows."""


class Tensor(Struct, frozen=True):
    """A tensor in a file: `shape` as text, and where in the file's data it lies."""

    name: str
    dtype: str
    shape: str
    begin: int
    end: int


class Preview(Struct, frozen=True, kw_only=True):
    """What can be shown of an object. `kind` says which fields matter: ``text``, ``image``, ``tensors``, ``bytes`` or
    ``nothing``. `why` is what is to be said about it."""

    kind: str
    why: str = ""
    text: str = ""
    media_type: str = ""
    tensors: tuple[Tensor, ...] = ()
    count: int = 0
    metadata: tuple[tuple[str, str], ...] = ()


_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Entry(Struct):
    dtype: Annotated[str, Meta(max_length=32)]
    shape: Annotated[list[_Count], Meta(max_length=32)]
    data_offsets: tuple[_Count, _Count]


def image_type(head: bytes) -> str:
    """The media type of an image that can hold no script, by its first bytes; empty for anything else. Never SVG."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "image/avif"
    return ""


def header_bytes(head: bytes, size: int) -> int:
    """The length of a safetensors file, of `size` bytes, up to the end of its header; 0 where it is none."""
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{" or not 2 <= length <= min(_FORMAT_MAX_HEADER, size - 8):
        return 0
    return 8 + length


def preview(head: bytes, size: int) -> Preview:
    """What can be shown of an object of `size` bytes that begins with `head`: its first `HEAD_BYTES`, or as many as
    `header_bytes` asked for."""
    if not size:
        return Preview(kind="nothing", why="The object is empty.")
    media_type = image_type(head)
    if media_type:
        if size > MAX_IMAGE_BYTES:
            return Preview(kind="nothing", why=f"An image of {size:,} bytes is too large to be shown here.")
        return Preview(kind="image", media_type=media_type)
    if (until := header_bytes(head, size)) != 0:
        if until - 8 > MAX_HEADER_BYTES:
            return Preview(kind="nothing", why=f"A safetensors header of {until - 8:,} bytes is too long to be shown.")
        if len(head) >= until and (shown := _tensors(head[8:until])) is not None:
            return shown
    cut = len(head) < size
    text = _text(head[:HEAD_BYTES], cut=cut or len(head) > HEAD_BYTES)
    if text is not None:
        return Preview(kind="text", text=text, why=f"The first {HEAD_BYTES:,} bytes." if cut else "")
    return Preview(
        kind="bytes",
        text=_hex(head[:_HEX_BYTES]),
        why=f"No text and no image that can be shown: its first {min(size, _HEX_BYTES):,} bytes.",
    )


def _text(data: bytes, *, cut: bool) -> str | None:
    """UTF-8 that reads as text; what is cut may end within a character."""
    for back in range(4 if cut else 1):
        try:
            text = data[: len(data) - back].decode()
        except UnicodeDecodeError:
            continue
        return None if _CONTROL.search(text) else text
    return None


def _hex(data: bytes) -> str:
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        shown = "".join(chr(each) if 32 <= each < 127 else "." for each in row)
        lines.append(f"{at:08x}  {row.hex(' '):<47}  {shown}")
    return "\n".join(lines)


def _tensors(header: bytes) -> Preview | None:
    """None: it is not what the format says."""
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        about: dict[str, Any] = {}
        if (raw := entries.pop("__metadata__", None)) is not None:
            about = msgspec.json.decode(raw, type=dict[str, str])
        tensors = []
        for name, raw in list(entries.items())[:MAX_TENSORS]:
            entry = msgspec.json.decode(raw, type=_Entry)
            shape = " x ".join(map(str, entry.shape)) or "scalar"
            tensors.append(Tensor(name[:_MAX_TEXT], entry.dtype, shape, *entry.data_offsets))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    metadata = [(key[:_MAX_TEXT], value[:_MAX_TEXT]) for key, value in list(about.items())[:_MAX_METADATA]]
    return Preview(kind="tensors", tensors=tuple(tensors), count=len(entries), metadata=tuple(metadata))


def visible(text: str) -> str:
    """A key as people can read it: what has no look of its own, or changes how the rest looks, by its number."""
    shown = text
    if not text.isprintable():
        shown = "".join(each if each.isprintable() else f"\\u{{{ord(each):x}}}" for each in text)
    core = shown.strip(" ")
    if core == shown:
        return shown
    left = len(shown) - len(shown.lstrip(" "))
    return "␣" * left + core + "␣" * (len(shown) - left - len(core))
