"""Who consumed what: closures over the sidecars' ``consumes`` and the real reuse counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Key = tuple[str, str, str]  # stage, name, version
#: Stages whose artifacts serve several runs, so that N is counted of them.
TEACHER = ("teacher_logits", "teacher_generation", "reference_logprobs")


class Provenance:
    """Closures over ``consumes``. ``edges``: key → keys it read; ``runs``: training key → run label."""

    def __init__(self, edges: Mapping[Key, Iterable[Key]], runs: Mapping[Key, str]) -> None:
        self._edges = {key: tuple(parents) for key, parents in edges.items()}
        self._closures: dict[Key, frozenset[Key]] = {}
        self._reuse: dict[Key, set[str]] = {}
        for key, run in runs.items():
            for parent in self.needs(key):
                if parent[0] in TEACHER:
                    self._reuse.setdefault(parent, set()).add(run)

    def closure(self, key: Key) -> frozenset[Key]:
        """Every artifact that ``key`` needed, directly or not, without itself. Missing ones are included."""
        if key not in self._closures:
            found: set[Key] = set()
            todo = list(self._edges.get(key, ()))
            while todo:
                parent = todo.pop()
                if parent not in found:
                    found.add(parent)
                    todo.extend(self._edges.get(parent, ()))
            self._closures[key] = frozenset(found)
        return self._closures[key]

    def continued(self, key: Key) -> frozenset[Key]:
        """The trainings whose student ``key`` starts from (a quantised student's), directly or through such a one."""
        direct = {parent for parent in self._edges.get(key, ()) if parent[0] == "student_training"}
        parents = direct - self.needs(key)  # one that sampled for an artifact is part of what the artifact cost
        return frozenset(parents).union(*(self.continued(parent) for parent in parents))

    def needs(self, key: Key) -> frozenset[Key]:
        """As ``closure``, without the trainings that it starts from and what they alone needed: those are charged to
        it whole, but an artifact is not reused once more because its student is."""
        parents = [parent for parent in self._edges.get(key, ()) if parent[0] != "student_training"]
        return frozenset(parents).union(*(self.closure(parent) for parent in parents))

    def reuse(self, artifact: Key) -> int:
        """N: the number of distinct runs whose sidecars say that they consumed the artifact."""
        return len(self._reuse.get(artifact, ()))

    def missing(self, key: Key) -> list[Key]:
        """Artifacts that ``key`` says it consumed and that have no accepted sidecar."""
        return sorted(parent for parent in self._edges.get(key, ()) if parent not in self._edges)
