import { fal } from "@fal-ai/client";
const connection = fal.realtime.connect("fal-ai/lcm-sd15-i2i", {
onResult: (result) => {
console.log(result);
},
onError: (error) => {
console.error(error);
}
});
connection.send({
prompt: "masterpiece, colorful, photo of a beach in hawaii, sun",
image_url: "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png"
});
