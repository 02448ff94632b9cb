// Ask a fourstep server for a picture through fal's own JavaScript client (`npm install @fal-ai/client`, 1.10 or newer).
//
//     fourstep serve --model auto
//     node examples/javascript.mjs [YOUR_PICTURE.jpg]        writes output.jpg

import { readFile, writeFile } from "node:fs/promises";
import { basename } from "node:path";

import { fal } from "@fal-ai/client";

const server = process.env.SERVER_URL ?? "http://localhost:8000";

// `when: "always"` is what makes Node use the proxy; a plain string counts in browsers only.
fal.config({ proxyUrl: { url: `${server}/api/fal/proxy`, when: "always" } });

// A picture of your own is uploaded to the server. Without one: fal's sample, which the demo model has on board.
const path = process.argv[2];
const image_url = path
  ? await fal.storage.upload(new File([await readFile(path)], basename(path), { type: "image/jpeg" }))
  : "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png";

// `subscribe` puts a job into the queue and waits for its result. A restart of the server does not lose it.
const result = await fal.subscribe("fal-ai/lcm-sd15-i2i", {
  input: {
    prompt: "masterpiece, colorful, photo of a beach in hawaii, sun",
    image_url,
    strength: 0.8, // how far from your picture: 0.5 keeps much of it, 1.0 next to nothing
    seed: 42, // the same seed and input give the same picture
  },
  onQueueUpdate: (update) => console.log(update.status),
});

const [picture] = result.data.images;
const answer = await fetch(picture.url);
await writeFile("output.jpg", Buffer.from(await answer.arrayBuffer()));
console.log(`output.jpg: ${picture.width}×${picture.height}, seed ${result.data.seed}`);
