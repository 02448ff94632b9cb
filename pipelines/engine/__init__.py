"""The engine: takes requests, keeps one device busy with them, sends answers. No torch, no HTTP.

Reading order: `loop`, then what it uses: `request`, `batching` (who goes next), `stages` and `stage_runner` (calls of
the backend), `readback` and `codec_pool` (threads for pictures). `backend` is what an implementation for a device
provides; `instant` is one without a model.
"""
