"""Command-line tools of the device side: pull, doctor, bench.

Reading order: __main__; probes and doctor; progress and bench.
"""
