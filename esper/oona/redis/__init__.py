"""The log on Redis: the adapter, its Functions in Lua, and what it demands of a server."""
