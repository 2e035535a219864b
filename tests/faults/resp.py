"""The borders of messages in Redis's wire protocol, which is also the form of its append-only file."""

from __future__ import annotations

#: Kinds that are one line.
_LINES = frozenset(b"+-:_#,(")
#: Kinds whose line gives the length of the bytes that follow.
_BULKS = frozenset(b"$=!")
#: Kinds whose line gives how many values follow, with how many values one item has.
_ITEMS = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2, ord("|"): 2}


class NotResp(ValueError):
    """Bytes are no message of the protocol."""


def end_of(data: bytes | bytearray, start: int = 0) -> int | None:
    """Return where the message that begins at a place ends, or None if it is not all there.

    Raises:
        NotResp: What stands there is no message.
    """
    open_values = 1
    while open_values:
        line = data.find(b"\r\n", start)
        if start < len(data) and data[start] not in _LINES and data[start] not in _BULKS and data[start] not in _ITEMS:
            raise NotResp(f"byte {start} is {bytes(data[start : start + 1])!r}, which begins no message")
        if line < 0:
            return None
        kind, text = data[start], bytes(data[start + 1 : line])
        start = line + 2
        open_values -= 1
        if kind in _LINES:
            continue
        try:
            number = int(text)
        except ValueError:
            raise NotResp(f"{text!r} is no length") from None
        if kind in _ITEMS:
            open_values += max(number, 0) * _ITEMS[kind] + (kind == ord("|"))
        elif number >= 0:
            start += number + 2
            if start > len(data):
                return None
    return start


def words_of(message: bytes | bytearray) -> list[bytes]:
    """Return the words of a command.

    Raises:
        NotResp: It is no array of strings.
    """
    line = message.find(b"\r\n")
    if message[:1] != b"*" or line < 0:
        raise NotResp("a command is an array")
    words = []
    place = line + 2
    for _ in range(int(message[1:line])):
        line = message.find(b"\r\n", place)
        if message[place : place + 1] != b"$" or line < 0:
            raise NotResp("a word of a command is a string with a length")
        end = line + 2 + int(message[place + 1 : line])
        words.append(bytes(message[line + 2 : end]))
        place = end + 2
    return words
