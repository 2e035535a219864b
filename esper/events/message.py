"""Facts of the message bus: what somebody published, as it was published."""

from __future__ import annotations

from typing import Any

from esper.events.base import Fact, fact


@fact(None, stream="message", key="topic")
class MessagePublished(Fact, frozen=True, kw_only=True):
    """A message was published. It is data: nothing in Esper obeys it unless it validates as a command of its sender."""

    #: Topic the message is published to, which is also the topic of this fact.
    topic: str
    #: Id the publisher gave the message, as it wrote it.
    message_id: str
    #: Trace id as the publisher wrote it.
    trace: str
    #: The publisher's own time, microseconds since the Unix epoch; nothing is ordered by it.
    published_at: int
    #: Plain data; NaN and infinities stay what they are.
    payload: dict[str, Any]
