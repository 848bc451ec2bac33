"""The groups in which the writes of a batch are tried, each in one transaction."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from .batching import Job, give_errors, without

W = TypeVar("W")


class Groups(Generic[W]):
    """A batch of writes in the groups in which they are tried, one after the other, each group in one transaction.

    Neighbours of one kind go together. Where a group fails, each of its writes is tried alone, so that one that cannot
    succeed fails alone. Whoever iterates says of each group how it went.

    Args:
        jobs: the batch's, in order.
        kind_of: a write's kind; equal for those that can share a transaction, None for one that cannot.
        size_of: a write's size, in what `max_size` is measured in.
        max_size: the largest size of a group, except for a write that is larger by itself.
    """

    def __init__(
        self,
        jobs: Iterable[Job[W]],
        kind_of: Callable[[W], Hashable],
        *,
        size_of: Callable[[W], int],
        max_size: int,
    ) -> None:
        self._groups = deque(_grouped(jobs, kind_of, size_of, max_size))

    def __iter__(self) -> Groups[W]:
        return self

    def __bool__(self) -> bool:
        """Whether groups are left."""
        return bool(self._groups)

    def left(self) -> list[Job[W]]:
        """The jobs of all groups that are left, in order."""
        return [job for group in self._groups for job in group]

    def __next__(self) -> list[Job[W]]:
        if not self._groups:
            raise StopIteration
        return self._groups.popleft()

    def succeeded(self, group: Sequence[Job[W]], results: Iterable[object]) -> None:
        """Each write of the group has its result."""
        for job, result in zip(group, results, strict=True):
            job.result = result

    def failed(self, group: Sequence[Job[W]], error: Exception) -> bool:
        """Nothing of the group was written. Several are tried again, each alone; one has failed: then True."""
        if len(group) > 1:
            self._groups.extendleft([job] for job in reversed(group))
            return False
        group[0].error = error
        return True

    def again(self, group: list[Job[W]]) -> None:
        """Nothing of the group was written; try it once more before the others."""
        if group:
            self._groups.appendleft(group)

    def fail_late(self, group: list[Job[W]], error: Exception, now: float) -> list[Job[W]]:
        """Nothing of the group was written, because others hold what it and all that are left wait for.

        Those whose deadline is over have failed, and are returned. The group's others are tried again first.
        """
        self.again(group)
        late = [job for job in self.left() if job.deadline <= now]
        give_errors(late, error)
        self._groups = deque(rest for group in self._groups if (rest := without(group, late)))
        return late


def _grouped(
    jobs: Iterable[Job[W]], kind_of: Callable[[W], Hashable], size_of: Callable[[W], int], max_size: int
) -> list[list[Job[W]]]:
    groups: list[list[Job[W]]] = []
    kind: Hashable = None
    room = 0
    for job in jobs:
        its_kind, size = kind_of(job.work), size_of(job.work)
        room -= size
        if groups and its_kind is not None and its_kind == kind and room >= 0:
            groups[-1].append(job)
        else:
            groups.append([job])
            kind, room = its_kind, max_size - size
    return groups
