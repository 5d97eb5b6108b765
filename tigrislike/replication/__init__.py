"""Work owed, done: consumers of the queue that lives in the metadata database (`metadata/owed.py`)."""
