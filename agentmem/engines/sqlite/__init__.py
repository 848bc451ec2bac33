"""Sessions in SQLite files, through aiosqlite."""
