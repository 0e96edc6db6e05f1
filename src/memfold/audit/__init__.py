"""The audit: plan, run, store, summarize."""
