"""What the handles on something open (sessions, stores, streams) have in common: none is pickled or copied."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex


def refuse_copies(handle: object, protocol: SupportsIndex) -> NoReturn:
    """Stand for ``__reduce_ex__`` of a handle's class: pickle, ``copy`` and ``dataclasses.asdict`` call it.

    A copy could not share the connections and the locks behind the handle, nor know who closes them.

    Raises:
        TypeError: always; it names the class, and says what to pass instead.
    """
    name = type(handle).__name__
    raise TypeError(
        f"{name} cannot be pickled or copied (as dataclasses.asdict does, too), because it stands for connections and "
        f"what runs on them; pass on what it was made from, and make a new {name} from that"
    )
