"""Show results: HTML reports, tables and attention maps."""
