"""The SQL database: connections, tables, rows, migrations. Knows nothing of files, indexes or keys."""
