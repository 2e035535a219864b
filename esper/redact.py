"""What is secret, and how it is masked before a person or a file sees it.

Belongs here: the rules. Does not belong here: messages (``esper.logs``) and settings (``esper.settings``), which use
them.
"""

from __future__ import annotations

import re

#: What stands in place of a secret.
MASK = "***"

_SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|token(?!s)|secret|authori[sz]ation|credential|api_?key|private_?key|cookie", re.IGNORECASE
)
# The user part may be empty (redis://:pw@host); the password ends at the last @ before the path.
_URL_CREDENTIALS = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^\s/?#:@]*):(?P<word>[^\s/?#]*)@", re.IGNORECASE
)
_URL_PARAMETER = re.compile(
    r"(?P<name>[?&](?:password|passwd|token(?!s)|secret|access_key|api_key|signature)=)[^&#\s]*", re.IGNORECASE
)


def is_secret_name(name: str) -> bool:
    """Tell whether a key of that name holds a secret, e.g. ``authorization`` or ``S3_SECRET_KEY``."""
    return _SECRET_NAME.search(name) is not None


def mask_text(text: str) -> str:
    """Return a text with the passwords of every URL in it masked."""
    text = _URL_CREDENTIALS.sub(rf"\g<scheme>\g<user>:{MASK}@", text)
    return _URL_PARAMETER.sub(rf"\g<name>{MASK}", text)


def mask_value(name: str, value: object) -> object:
    """Return a value as it may be shown under a name: masked whole, masked in its URLs, or as it is.

    Mappings and sequences are walked, so that a secret deep inside a value is masked too.
    """
    if is_secret_name(name) and value is not None:
        return MASK
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, dict):
        return {key: mask_value(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask_value("", inner) for inner in value]
    return value
