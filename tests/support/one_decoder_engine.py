"""An engine with one decoder process, however many the machine has: `python -P tests/support/one_decoder_engine.py`."""

import dataclasses

from pipelines import worker
from pipelines.images.decoder_process import DecoderLimits, Decoders


def load(config, progress):
    """Load what `config` names."""
    decoders = Decoders(config, limits=DecoderLimits(count=1))
    return dataclasses.replace(worker.load_backend(config, progress), decoders=decoders)


if __name__ == "__main__":
    worker.main(load)
