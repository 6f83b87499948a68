"""Whole days of the ledger as Parquet, in a folder or an object store. The meter never imports it, and never waits for it."""
