"""A report as a page or a table. Never imports torch."""
