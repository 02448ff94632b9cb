"""The pool of engine processes, one per device, and the requests that are assigned to them.

Reading order: `pool` (what the rest of the server calls), `pending` (a request in it), `dispatcher` (which request goes
to which engine), `fair_queue` (the order of those that wait), `supervisor` (one device, its engine restarted), `launch`
and `process` (one engine).
"""
