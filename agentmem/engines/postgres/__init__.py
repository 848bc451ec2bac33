"""Sessions in PostgreSQL, or in a database that speaks its protocol, through asyncpg."""
