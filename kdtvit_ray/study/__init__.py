"""A study without Ray: search space, stage tree, store, ledger and search."""
