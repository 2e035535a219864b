"""Tools that break real servers, connections and files, for tests of what survives. Never part of the product."""
