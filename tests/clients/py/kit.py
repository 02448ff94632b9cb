"""What every script here starts from: its options, the input, and how to say things to the test."""

import json
import os
import sys

OPTIONS = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
APP = OPTIONS.get("app", "fal-ai/lcm-sd15-i2i")
INPUT = {"prompt": "a beach", "image_url": os.environ["PICTURE"], "seed": 7, **OPTIONS.get("input", {})}


def say(what):
    """One thing for the test to look at."""
    print("say", json.dumps(what, default=vars), flush=True)


def fault(error):
    """An error as an application sees it."""
    return {
        "kind": type(error).__name__,
        "message": str(error),
        "status": getattr(error, "status_code", None),
        "error_type": getattr(error, "error_type", None),
    }
