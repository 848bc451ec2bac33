"""The tables, and what upgrades them from each version to the next one."""

from __future__ import annotations

SCHEMA_VERSION = 1


STEPS = (
    # To version 1. The collation makes ids equal where their bytes are, and orders them by these.
    """
    CREATE TABLE agentmem.agentmem_sessions (
        session_id text COLLATE "C" PRIMARY KEY,
        next_position bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE agentmem.agentmem_items (
        session_id text COLLATE "C" NOT NULL,
        position bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        item text NOT NULL,  -- JSON
        PRIMARY KEY (session_id, position)
    );
    CREATE TABLE agentmem.agentmem_writers (
        writer uuid PRIMARY KEY,
        number bigint NOT NULL,  -- of its newest transaction
        updated_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE agentmem.agentmem_schema (version int NOT NULL);
    INSERT INTO agentmem.agentmem_schema VALUES (0);
    """,
)
"""What brings the schema from each version to the next one."""

VERSION = "SELECT version FROM agentmem.agentmem_schema"
