"""The message bus over the log: ``OonaClient`` for asyncio programs."""
