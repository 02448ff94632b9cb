// What every script here starts from: its options, the client under test, and how to say things to the test.

export const options = JSON.parse(process.argv[2] ?? "{}");

// 0.x exports its functions, 1.x an object.
const module = await import(options.package ?? "@fal-ai/client");
export const fal = module.fal ?? module.default ?? module;

export const APP = options.app ?? "fal-ai/lcm-sd15-i2i";
export const input = { prompt: "a beach", image_url: process.env.PICTURE, seed: 7, ...options.input };

if (options.proxy) fal.config({ proxyUrl: { url: options.proxy, when: "always" } });

export function say(what) {
  process.stdout.write(`say ${JSON.stringify(what)}\n`);
}

// An error as an application sees it.
export function fault(error) {
  const { status, body, requestId, timeoutType } = error;
  return { kind: error.constructor.name, message: error.message, status, body, requestId, timeoutType };
}
