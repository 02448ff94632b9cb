"""Web side of fourstep: fal's protocol on top of engine processes. Imports of `pipelines` only `pipelines.messages`.

Reading order: `cli` (the command), `app` (composition root), `transport` (sockets), `web` (ASGI around the routes),
`api` (routes), `generate` (the use case), `workers` (engine processes), `jobs` (the durable queue), `webhooks`,
`storage`, `outbound`, `access` (keys and limits), `fal` (the protocol, pure). The picture is in `docs/architecture.md`.
"""
