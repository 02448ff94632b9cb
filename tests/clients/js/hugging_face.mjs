// Hugging Face's client with fal as its provider. The hub says which of fal's apps a model is; `fetch` stands in for it.
import { InferenceClient } from "@huggingface/inference";
import { APP, input, say } from "./kit.mjs";

const inferenceProviderMapping = { "fal-ai": { providerId: APP, status: "live", task: "image-to-image" } };
const hub = (url, init) =>
  new URL(url).host === "huggingface.co" ? Response.json({ inferenceProviderMapping }) : fetch(url, init);

const picture = await (await fetch(input.image_url)).blob();
const parameters = { prompt: input.prompt, strength: 0.5, seed: input.seed };
const alive = setInterval(() => {}, 1000); // the client's pause between two polls lets a program end
const made = await new InferenceClient(process.env.FAL_KEY).imageToImage(
  { provider: "fal-ai", model: "me/lcm", inputs: picture, parameters },
  { fetch: hub },
);
say({ type: made.type, size: made.size });
clearInterval(alive);
