"""An engine that decodes on its own threads: `python -P tests/support/one_pool_engine.py --fd N`.

Only files over 2 MiB go to decoder processes. Of the others, pictures that take much memory are decoded one at a time,
and the threads of those that follow wait meanwhile. Everything else is as it ships.
"""

import dataclasses
import threading

from pipelines import worker
from pipelines.engine.backend import ImageCodec
from pipelines.images import codec


class OnePool(ImageCodec):
    """Decodes whatever comes."""

    _one_at_a_time = threading.Lock()

    def decode(self, data):
        try:
            return super().decode(data)
        except codec.LargePicture as large:
            if not large.alone:
                return codec.decode(data, self.config)
        with self._one_at_a_time:
            return codec.decode(data, self.config)


def load(config, progress):
    """Load what `config` names."""
    loaded = worker.load_backend(config, progress)
    return dataclasses.replace(loaded, codec=OnePool(config))


if __name__ == "__main__":
    worker.main(load)
