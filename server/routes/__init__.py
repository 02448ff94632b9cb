"""The API as tables: each module has its routes in `ROUTES`, on the canonical paths of `server.hosts`."""
