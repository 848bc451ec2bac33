"""Partitioning by session, on paper: how even the load on N shards would be if a session's id chose its shard.

Rules kept here:

- A shard is chosen by a hash that is the same in every process and release, and by nothing else.
- Traffic is Zipf-like: the session of rank r has a share in proportion to ``1 / r ** exponent``. With 0 all sessions
  are alike; 1 is Zipf's law, where the busiest of 1,000 makes an eighth of all traffic, as a bot's might.
- Nothing is measured. The same arguments give the same figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

SHARDS = (4, 16, 64)
SESSIONS = (1_000, 1_000_000)
EXPONENTS = (0.0, 0.5, 1.0)
SEEDS = 5


@dataclass(frozen=True)
class Evenness:
    """How a number of sessions spread over a number of shards.

    Attributes:
        busiest_share: of all traffic, of the one session that has most of it; no partitioning divides it.
        most_to_mean: the busiest shard's load to that of all in the mean; the median over the seeds. 1 is even, and
            N shards hold N / ``most_to_mean`` times what one holds.
        worst: the highest over the seeds.
    """

    sessions: int
    exponent: float
    shards: int
    busiest_share: float
    most_to_mean: float
    worst: float


def shard_of(session_id: str, shards: int) -> int:
    """The shard of a session, from 0."""
    return _hash(session_id) % shards


def _hash(session_id: str) -> int:
    # Python's own hash() differs from process to process.
    return int.from_bytes(blake2b(session_id.encode(), digest_size=8).digest(), "big")


def simulate(sessions: int, exponents: Sequence[float], shards: Sequence[int], seeds: int = SEEDS) -> list[Evenness]:
    """Spread the sessions once for each seed, which makes other ids; by exponent, then by number of shards."""
    traffic = {exponent: [rank**-exponent for rank in range(1, sessions + 1)] for exponent in exponents}
    ratios: dict[tuple[float, int], list[float]] = {(exponent, count): [] for exponent in exponents for count in shards}
    for seed in range(seeds):
        hashes = [_hash(f"{seed}:{number}") for number in range(sessions)]
        for (exponent, count), found in ratios.items():
            load = [0.0] * count
            for hashed, share in zip(hashes, traffic[exponent], strict=True):
                load[hashed % count] += share
            found.append(max(load) * count / sum(load))
    return [
        Evenness(sessions, exponent, count, 1 / sum(traffic[exponent]), statistics.median(found), max(found))
        for (exponent, count), found in ratios.items()
    ]


def simulated_table(
    sessions: Sequence[int] = SESSIONS, exponents: Sequence[float] = EXPONENTS, shards: Sequence[int] = SHARDS
) -> str:
    """The busiest shard's load to the mean, as Markdown: a row for each number of sessions and exponent."""
    return "\n".join(_lines(sessions, exponents, shards))


def _lines(sessions: Sequence[int], exponents: Sequence[float], shards: Sequence[int]) -> Iterator[str]:
    yield f"| sessions | Zipf exponent | busiest session | {' | '.join(f'{count} shards' for count in shards)} |"
    yield f"|---:|---:|---:{'|---:' * len(shards)}|"
    for number in sessions:
        found = simulate(number, exponents, shards)
        for exponent in exponents:
            row = [evenness for evenness in found if evenness.exponent == exponent]
            cells = " | ".join(f"{each.most_to_mean:.2f} × (worst {each.worst:.2f})" for each in row)
            yield f"| {number:,} | {exponent:g} | {row[0].busiest_share * 100:.2g} % | {cells} |"
    yield ""
    yield (
        f"The busiest shard's load to the mean of all, the median and the worst of {SEEDS} sets of ids. The session of "
        "rank r has traffic in proportion to 1 / r^exponent."
    )
