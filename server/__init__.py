"""Web side of fourstep: fal's protocol on top of engine processes. It imports of `pipelines` only `pipelines.messages`.

    client ─▶ transport ─▶ web ─▶ api ─▶ generate ─▶ workers ══socket══▶ pipelines.worker   (one process per device)
                                   │         ▲
                                   └▶ jobs ──┘        webhooks        storage        outbound

Reading order: app (what is made of what), fal (the protocol), web and api, generate, workers, jobs, webhooks, storage,
outbound, access, transport, cli.
"""
