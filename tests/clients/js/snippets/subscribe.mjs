import { fal } from "@fal-ai/client";
const result = await fal.subscribe("fal-ai/lcm-sd15-i2i", {
input: {
prompt: "masterpiece, colorful, photo of a beach in hawaii, sun",
image_url: "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png"
},
logs: true,
onQueueUpdate: (update) => {
if (update.status === "IN_PROGRESS") {
update.logs.map((log) => log.message).forEach(console.log);
}
},
});
console.log(result.data);
console.log(result.requestId);
