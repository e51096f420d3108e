"""The journal: every verdict byte for byte as it is published, in SQLite. The only place of `sqlite3`."""
