"""Run directories: what a run writes while it trains, and how runs are listed, compared and shown."""
