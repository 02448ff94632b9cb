// Cancel, and everything that a client may ask afterwards.
import { APP, fal, fault, input, options, say } from "./kit.mjs";

const before = [];
for (let i = 0; i < (options.behind ?? 0); i++) before.push(await fal.queue.submit(APP, { input }));
const { request_id: requestId } = await fal.queue.submit(APP, { input });
let was;
do was = (await fal.queue.status(APP, { requestId })).status;
while (options.whenRunning && was === "IN_QUEUE");
await fal.queue.cancel(APP, { requestId });
for (const other of before) await fal.queue.cancel(APP, { requestId: other.request_id });
let status = await fal.queue.status(APP, { requestId });
while (status.status !== "COMPLETED") status = await fal.queue.status(APP, { requestId });
const result = await fal.queue.result(APP, { requestId }).catch(fault);
const second = await fal.queue.cancel(APP, { requestId }).catch(fault);
say({ was, status, result, second });
