// The same call again and again; how each ended.
import { APP, fal, fault, input, options, say } from "./kit.mjs";

const calls = {
  run: () => fal.run(APP, { input }),
  subscribe: () => fal.subscribe(APP, { input, pollInterval: 20 }),
};
const ended = [];
for (let i = 0; i < options.times; i++) {
  const began = performance.now();
  const outcome = await calls[options.call]().then(() => "ok", (error) => fault(error).kind);
  ended.push({ outcome, ms: performance.now() - began });
}
say(ended);
process.exit();
