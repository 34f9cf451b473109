"""The sweep: search space, stage tree, store, coordinator, worker groups, tuner. Ray lives here only."""
