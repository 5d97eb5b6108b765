"""Measurements: this store beside its peers, on one machine, with one client. See `bench/README.md`."""
