"""HTTP and websocket routes, one module per part of fal's API; each lists its own in `ROUTES`.

Read run, then ws_run, realtime, queue, uploads, files, tokens, proxy, ops, playground.
"""
