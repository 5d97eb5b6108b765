"""For operators: checking and mending a store (`fsck`)."""
