"""A laboratory: distance, narrow wires and partitions between regions that all run on one machine."""
