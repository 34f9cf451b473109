"""A study on Ray: driver, coordinator, worker groups and trials. Ray is imported here only."""
