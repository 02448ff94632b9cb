import { APP, fal, input, options, say } from "./kit.mjs";

const submitted = await fal.queue.submit(APP, { input, webhookUrl: options.webhookUrl });
const requestId = submitted.request_id;
let status = await fal.queue.status(APP, { requestId, logs: true });
while (status.status !== "COMPLETED") {
  await new Promise((resolve) => setTimeout(resolve, 50));
  status = await fal.queue.status(APP, { requestId, logs: true });
}
const result = await fal.queue.result(APP, { requestId });
const again = await fal.queue.result(APP, { requestId });
say({ submitted, status, result, again });
