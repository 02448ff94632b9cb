import { APP, fal, input, options, say } from "./kit.mjs";

const stream = await fal.stream(APP, { input, connectionMode: options.connectionMode });
const events = [];
for await (const event of stream) events.push(event);
say({ events, done: await stream.done() });
