// The client's own patience: how long a call may wait to start, and how long a subscription may take.
import { APP, fal, fault, input, options, say } from "./kit.mjs";

let requestId;
const calls = {
  // Runs go before jobs: only other runs are in the way of a run.
  busy: () => fal.run(APP, { input }),
  run: () => fal.run(APP, { input, startTimeout: 1.1 }),
  subscribe: () => fal.subscribe(APP, { input, timeout: 600, pollInterval: 50, onEnqueue: (id) => (requestId = id) }),
};
const before = Array.from({ length: options.behind }, calls.busy);
await Promise.race(before); // by now the others have arrived
const error = await calls[options.call]().then(() => null, fault);
let status;
// The client asks to cancel and does not wait for the answer.
do status = requestId && (await fal.queue.status(APP, { requestId }));
while (status && status.status !== "COMPLETED");
say({ error, status });
process.exit(); // the others are left to themselves
