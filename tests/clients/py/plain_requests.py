"""The endpoint called by `requests`, as scripts without a client library do."""

import os

import requests
from kit import APP, INPUT, say

try:
    answer = requests.post(f"https://{os.environ['FAL_RUN_HOST']}/{APP}", json=INPUT, timeout=30)
except requests.exceptions.SSLError as error:
    say(type(error).__name__)
else:
    say(answer.json()["seed"])
