"""Webhooks: signed callbacks when a job ends. Read delivery, then outbox and signing_keys."""
