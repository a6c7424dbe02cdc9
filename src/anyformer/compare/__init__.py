"""Models side by side: what they cost, how they differ, whether they equal another implementation."""
