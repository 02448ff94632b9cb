"""Hugging Face's client with fal as its provider. Which of fal's apps a model is, the hub says; here, this file."""

import base64
import os

from huggingface_hub import InferenceClient
from huggingface_hub.hf_api import InferenceProviderMapping
from huggingface_hub.inference._providers._common import HARDCODED_MODEL_INFERENCE_MAPPING
from kit import APP, INPUT, say

MODEL = "me/lcm"
HARDCODED_MODEL_INFERENCE_MAPPING["fal-ai"][MODEL] = InferenceProviderMapping(
    provider="fal-ai", hf_model_id=MODEL, providerId=APP, status="live", task="image-to-image"
)
client = InferenceClient(provider="fal-ai", api_key=os.environ["FAL_KEY"])
picture = base64.b64decode(INPUT["image_url"].partition(",")[2])
made = client.image_to_image(picture, prompt=INPUT["prompt"], model=MODEL, strength=0.5, seed=7, num_inference_steps=4)
say({"size": made.size, "format": made.format})
