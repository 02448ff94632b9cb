"""Web side of fourstep: fal's protocol on top of engine processes. It imports of `pipelines` only `pipelines.messages`.

    client ─▶ routes ─▶ generate ─▶ workers ══socket══▶ pipelines.worker   (one process per device)
                │           ▲                             engine: admit → step → retire
                ▼           │                             images: bytes → pixels … pixels → bytes
              queue ────────┘
                │
            job_store (SQLite)     files (disk)     webhooks (outbox in job_store)

Where to read what, from the street inwards:

    the command      cli, settings, data_dir, serve, demo (with example_client), tools, launch
    the sockets      listen, protocols, websocket_protocol; tls, certificates, takeover
    the front        front: logs, doors, cors, hosts, limits; auth, keys
    the API          app, deps, routes/*; endpoints, schemas, fields, openapi, platform_headers, realtime, sse,
                     connection, responses, errors
    the use case     generate, data_uri
    the engines      workers, hands, ticket, dispatch, engine_slot, engine_process
    the queue        queue, claims, attempt, jobs, board, retention; job_store, attic, job_schema, database,
                     group_commit
    webhooks         webhooks, outbox, webhook_keys
    the outside      fetch, urls, addresses, egress
    stored files     files, shelf, parts, uploads, lifecycle
    figures          metrics
"""
