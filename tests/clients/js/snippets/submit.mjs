import { fal } from "@fal-ai/client";
const { request_id } = await fal.queue.submit("fal-ai/lcm-sd15-i2i", {
input: {
prompt: "masterpiece, colorful, photo of a beach in hawaii, sun",
image_url: "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png"
},
webhookUrl: "https://optional.webhook.url/for/results",
});
