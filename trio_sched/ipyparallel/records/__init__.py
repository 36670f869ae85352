"""What became of every task: the records that `Client.db_query`, `get_result` and `resubmit` read."""
