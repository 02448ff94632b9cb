"""Web side of fourstep: fal's protocol on top of engine processes. It imports of `pipelines` only `pipelines.types`.

    client ─▶ routes ─▶ generate ─▶ workers ══socket══▶ pipelines.worker   (one process per device)
                │           ▲                             engine: admit → step → retire
                ▼           │                             images: bytes → pixels … pixels → bytes
              queue ────────┘
                │
            job_store (SQLite)     files (disk)     webhooks (outbox in job_store)

Reading order: cli, app, hosts, routes, generate, workers, queue, jobs, job_store, fetch, files, errors, settings.
"""
