"""Graph edit distance between two small labelled graphs: exact where a bounded search can tell, else an upper bound.

Belongs here: the costs, the search and its bound. Does not belong here: what a blueprint's labels are (``novelty``).

An edit inserts, deletes or replaces a node or an edge. Each costs 1; replacing something by its like (the same kind,
another detail) costs a half. The search is depth first with a lower bound, and its length is counted in tries, not in
seconds: the same two graphs have the same distance on every machine and in either order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import msgspec

#: Partial assignments tried before the best one found so far is taken.
MAX_TRIES = 20_000
_LIKE = 0.5

#: A node's label: its kind, and its details.
Label = tuple[str, Hashable]


class Labelled(msgspec.Struct, frozen=True):
    """A directed graph whose nodes and edges carry labels."""

    nodes: tuple[Label, ...]
    #: (from, to) by place in ``nodes`` -> the edge's label.
    edges: dict[tuple[int, int], Hashable]

    @property
    def size(self) -> int:
        """Return the number of nodes and edges."""
        return len(self.nodes) + len(self.edges)


class Distance(msgspec.Struct, frozen=True):
    """What a search came to."""

    #: Cost of the cheapest edits found; at least ``limit`` where the search was given one and nothing is cheaper.
    cost: float
    #: Whether there is nothing cheaper; else the search gave up and ``cost`` is an upper bound.
    exact: bool


def lower_bound(first: Labelled, second: Labelled) -> float:
    """Return a cost that the edits between two graphs have at least; it takes no search."""
    return _nodes_bound(Counter(first.nodes), Counter(second.nodes)) + abs(len(first.edges) - len(second.edges))


def edit_distance(
    first: Labelled, second: Labelled, *, limit: float = float("inf"), max_tries: int = MAX_TRIES
) -> Distance:
    """Return the cost of the cheapest edits that turn one graph into the other.

    Args:
        first: One graph.
        second: The other; the order of the two makes no difference.
        limit: Do not look for edits that cost as much as this or more.
        max_tries: Bound of the search.
    """
    small, large = sorted((first, second), key=_sort_key)
    search = _Search(small, large, limit, max_tries)
    search.run()
    return Distance(search.best, search.tries <= max_tries)


def _sort_key(graph: Labelled) -> tuple[int, int, str, str]:
    return len(graph.nodes), len(graph.edges), repr(graph.nodes), repr(sorted(graph.edges.items()))


def _nodes_bound(left: Counter[Label], right: Counter[Label]) -> float:
    """Return the cost of the nodes alone, were their edges no matter."""
    equal = (left & right).total()
    kinds_left: Counter[str] = Counter()
    kinds_right: Counter[str] = Counter()
    for label, count in left.items():
        kinds_left[label[0]] += count
    for label, count in right.items():
        kinds_right[label[0]] += count
    alike = (kinds_left & kinds_right).total() - equal
    return max(left.total(), right.total()) - equal - (1 - _LIKE) * alike


def _replacing(first: Label, second: Label) -> float:
    if first == second:
        return 0.0
    return _LIKE if first[0] == second[0] else 1.0


class _Search:
    """Assigns the nodes of the smaller graph one by one to nodes of the larger, or to none."""

    def __init__(self, small: Labelled, large: Labelled, limit: float, max_tries: int) -> None:
        self._small = small
        self._large = large
        self._max_tries = max_tries
        self._free_labels = Counter(large.nodes)
        self._left_labels = Counter(small.nodes)
        self._free = [True] * len(large.nodes)
        self._assigned: list[int | None] = []
        #: By node of the smaller graph: (earlier node, whether the edge leads to it, label) of its edges.
        self._before: list[list[tuple[int, bool, Hashable]]] = [[] for _ in small.nodes]
        for (source, target), label in small.edges.items():
            self._before[max(source, target)].append((min(source, target), source > target, label))
        #: By node of the larger graph: the other ends of its edges.
        self._around: list[list[int]] = [[] for _ in large.nodes]
        for source, target in large.edges:
            self._around[source].append(target)
            self._around[target].append(source)
        #: Edges of the smaller graph that have an end at this node or a later one, by node.
        self._edges_ahead = [sum(max(edge) >= place for edge in small.edges) for place in range(len(small.nodes) + 1)]
        #: Edges of the larger graph between nodes that are assigned.
        self._edges_used = 0
        # Taking one graph away whole and putting the other there is always possible.
        self.best = min(limit, float(small.size + large.size))
        self.tries = 0

    def run(self) -> None:
        """Search until all is tried or the bound is reached."""
        self._descend(0.0)

    def _descend(self, cost: float) -> None:
        place = len(self._assigned)
        if place == len(self._small.nodes):
            # What was assigned to none stays as it is in the other graph: it has to be inserted.
            inserted = sum(self._free) + len(self._large.edges) - self._edges_used
            self.best = min(self.best, cost + inserted)
            return
        label = self._small.nodes[place]
        self._left_labels[label] -= 1
        for step, used, target in self._options(place):
            self.tries += 1
            if self.tries > self._max_tries:
                break
            self._take(target, used)
            if cost + step + self._bound(place + 1) < self.best:
                self._descend(cost + step)
            self._give_back(target, used)
        self._left_labels[label] += 1

    def _options(self, place: int) -> list[tuple[float, int, int | None]]:
        """Return what the node at a place can become, cheapest first: (cost, edges of the larger graph, node)."""
        found: list[tuple[float, int, int | None]] = []
        for target, free in enumerate(self._free):
            if free:
                cost, used = self._edges(place, target)
                found.append((_replacing(self._small.nodes[place], self._large.nodes[target]) + cost, used, target))
        # A stable sort by cost and closeness, so that graphs that run alike are walked alike.
        found.sort(key=lambda option: (option[0], abs((option[2] or 0) - place)))
        deleted, _ = self._edges(place, None)
        return [*found, (1.0 + deleted, 0, None)]

    def _edges(self, place: int, target: int | None) -> tuple[float, int]:
        """Return the cost of the edges between a node and those assigned before, and how many of the larger it uses."""
        cost, shared = 0.0, 0
        for earlier, turned, mine in self._before[place]:
            other = self._assigned[earlier]
            theirs = None
            if target is not None and other is not None:
                theirs = self._large.edges.get((target, other) if turned else (other, target))
            shared += theirs is not None
            if mine != theirs:
                cost += 1.0 if theirs is None else _LIKE
        used = 0 if target is None else sum(not self._free[other] for other in self._around[target])
        return cost + used - shared, used

    def _bound(self, place: int) -> float:
        ahead = len(self._large.edges) - self._edges_used
        return _nodes_bound(+self._left_labels, +self._free_labels) + abs(self._edges_ahead[place] - ahead)

    def _take(self, target: int | None, used: int) -> None:
        self._assigned.append(target)
        self._edges_used += used
        if target is not None:
            self._free[target] = False
            self._free_labels[self._large.nodes[target]] -= 1

    def _give_back(self, target: int | None, used: int) -> None:
        self._assigned.pop()
        self._edges_used -= used
        if target is not None:
            self._free[target] = True
            self._free_labels[self._large.nodes[target]] += 1
