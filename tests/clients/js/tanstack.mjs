// TanStack AI: pictures by its adapter, which configures fal's client.
import { generateImage } from "@tanstack/ai";
import { falImage } from "@tanstack/ai-fal";
import { APP, fault, input, options, say } from "./kit.mjs";

const proxyUrl = options.proxyUrl && { url: options.proxyUrl, when: "always" };
const source = { type: "data", mimeType: "image/jpeg", value: input.image_url.split(",")[1] };
try {
  const { images } = await generateImage({
    adapter: falImage(APP, { apiKey: process.env.FAL_KEY, proxyUrl }),
    prompt: [
      { type: "text", content: input.prompt },
      { type: "image", source },
    ],
    numberOfImages: 2,
    modelOptions: { strength: 0.5, ...options.model },
  });
  say(images);
} catch (error) {
  say(fault(error));
}
