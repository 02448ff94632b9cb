"""What the routes share: middleware, the preamble of a handler, responses, watching for clients that leave.

Read request, then connection, responses, access_log, origin_guard, canonical_path, websocket, clock.
"""
