"""What happens when the machine fails or the input is hostile: real processes, real kills.

`make test-faults N=20` runs every measurement and prints a table; quick slices run as tests.
"""
