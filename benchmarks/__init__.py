"""How fast agentmem is, beside the bare drivers and its rivals, in one run: ``python -m benchmarks``.

Rules kept here:

- Every system stores the same turns with the same durability: on SQLite WAL and synchronous FULL, on PostgreSQL fsync
  and synchronous_commit. Each process verifies it after measuring, as the system stores one more turn; a system with
  another one is not reported.
- Systems are compared with those on the same database. PostgreSQL is the server that AGENTMEM_TEST_POSTGRES names;
  where none answers, its rows say so.
- Each workload runs on each system in a process of its own, in several rounds (``--quick``: one) that change the
  order, so that what the machine does meanwhile falls on all of them. Histories are built beforehand and not timed.
- A rival is used as its documentation shows. One that is not installed, fails or has no such feature is a row
  that says so.
- Figures compare within one run on one machine; no figure decides a build.

The files, each importing only from those before it: ``databases``, ``material`` (what is stored), ``timing`` (clocks),
``server``, ``systems``, ``postgres`` and ``rivals`` (an adapter each), ``bench`` (what a workload is given),
``process_workloads`` and ``workloads``, ``durability``, ``measure`` (processes), ``report`` (statistics), ``targets``,
``chart``, ``markdown``, ``run``. A system is a class and a row in ``rivals.SYSTEMS``; a workload is a function and a
row in ``workloads.WORKLOADS``; a target is a row. ``python -m benchmarks.scaling`` is another command, with ``load``,
``places`` and ``partitions``.
"""
