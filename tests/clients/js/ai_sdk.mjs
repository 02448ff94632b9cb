// Vercel's AI SDK: pictures by fal's provider, which posts to `baseURL` and fetches what comes back.
import { createFal } from "@ai-sdk/fal";
import { generateImage } from "ai";
import { APP, input, options, say } from "./kit.mjs";

const fal = createFal({ baseURL: options.baseURL });
try {
  const { images, providerMetadata } = await generateImage({
    model: fal.image(APP),
    prompt: { text: input.prompt, images: [Buffer.from(input.image_url.split(",")[1], "base64")] },
    seed: input.seed,
    n: 2,
    maxRetries: 0,
    providerOptions: { fal: { strength: 0.5, ...options.fal } },
  });
  say({ types: images.map((image) => image.mediaType), told: providerMetadata.fal.images });
} catch (error) {
  say({ kind: error.name, status: error.statusCode, message: error.message });
}
