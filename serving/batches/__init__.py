"""Files and batches: JSONL jobs kept in one data folder and run beside live requests."""
