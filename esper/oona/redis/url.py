"""Where a log on Redis is: its URL, and the names of its keys.

Belongs here: parsing, and every key's name. Does not belong here: connecting (``link``).
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from esper.errors import ConfigError
from esper.redact import mask_text

Durability = Literal["always", "everysec"]

_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
_FORM = "redis://[user:password@]host:port/db?namespace=main&durability=always|everysec&replicas=0"
_DEFAULT_PORT = 6379


class RedisAddress(msgspec.Struct, frozen=True, kw_only=True):
    """What the URL of a log on Redis says."""

    host: str
    port: int = _DEFAULT_PORT
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    namespace: str = "main"
    durability: Durability = "always"
    #: How many replicas each append waits for.
    replicas: int = 0

    def __repr__(self) -> str:
        return f"RedisAddress({self.text})"

    @property
    def text(self) -> str:
        """Return the URL with its password masked, as messages show it."""
        user = f"{self.username or ''}:***@" if self.password else f"{self.username}@" if self.username else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{user}{host}:{self.port}/{self.db}?namespace={self.namespace}"


def parse_url(url: str) -> RedisAddress:
    """Return the address a URL stands for.

    Raises:
        ConfigError: The URL has another form, or asks for something that is not known.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise _bad(url, str(error)) from error
    if parts.scheme not in {"redis", "rediss"} or not host:
        raise _bad(url, "it names no server")
    if parts.fragment:
        raise _bad(url, "it has a fragment")
    db = parts.path.removeprefix("/")
    if db and not db.isdecimal():
        raise _bad(url, f"{db!r} is no number of a database")
    words = dict(query)
    if len(words) != len(query):
        raise _bad(url, "a key of its query stands twice")
    unknown = sorted(set(words) - {"namespace", "durability", "replicas"})
    if unknown:
        raise _bad(url, f"{unknown[0]!r} is not known")
    return RedisAddress(
        host=host,
        port=port or _DEFAULT_PORT,
        db=int(db or 0),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=parts.scheme == "rediss",
        namespace=_namespace(url, words.get("namespace", "main")),
        durability=_durability(url, words.get("durability", "always")),
        replicas=_replicas(url, words.get("replicas", "0")),
    )


def _namespace(url: str, word: str) -> str:
    if _NAMESPACE.match(word) is None:
        raise _bad(url, f"a namespace has letters, digits, dots, dashes and underscores, not {word!r}")
    return word


def _durability(url: str, word: str) -> Durability:
    if word == "always":
        return "always"
    if word == "everysec":
        return "everysec"
    raise _bad(url, f"durability is always or everysec, not {word!r}")


def _replicas(url: str, word: str) -> int:
    if not word.isdecimal() or int(word) > 100:
        raise _bad(url, f"replicas is a number from 0 to 100, not {word!r}")
    return int(word)


def _bad(url: str, why: str) -> ConfigError:
    return ConfigError(f"{mask_text(url)} does not name a log on Redis: {why}", hint=f"use {_FORM}")


class Keys:
    """Names of the keys of one log. A topic's stream is named by the topic; everything else begins with ``@``."""

    def __init__(self, namespace: str, *, cluster: bool) -> None:
        """Name the keys of a namespace; on a Cluster all of them hash to one slot."""
        self.prefix = f"esper:{{{namespace}}}:" if cluster or namespace != "main" else "esper:"
        self.meta = self.named("@meta")
        self.ids = self.named("@ids")
        self.versions = self.named("@versions")
        self.topics = self.named("@topics")
        self.bases = self.named("@bases")
        self.chain = self.named("@chain")
        self.cells = self.named("@cells")

    def named(self, name: str) -> str:
        """Return the key of a name."""
        return self.prefix + name

    def topic(self, name: str) -> str:
        """Return the key of a topic's stream."""
        return self.prefix + name

    def index(self, stream: str) -> str:
        """Return the key of the list that says where a stream's facts are."""
        return f"{self.prefix}@stream:{stream}"
