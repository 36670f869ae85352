"""Records of tasks, which `Client.db_query`, `get_result` and `resubmit` read."""
