"""Device side of fourstep: from encoded picture and prompt to encoded picture. No HTTP, no asyncio, no database.

Reading order: `messages` (all that `server` may import), `worker` (the process), `engine` (the loop; no torch), `model`
(the algorithm and its networks), `device` (the model on a device), `images`, `weights`, `hub`, `tools` (pull, doctor,
bench). The picture is in `docs/architecture.md`.
"""
