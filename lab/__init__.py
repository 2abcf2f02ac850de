"""Hosts of a cluster on one machine; see lab/lab.py. tests/lib/snowlab.py is how tests get it."""
