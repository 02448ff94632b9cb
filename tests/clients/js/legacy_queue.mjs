// What serverless-client knows of the queue: submit, status, result (0.6 has no cancel).
import { APP, fal, input, say } from "./kit.mjs";

const { request_id: requestId } = await fal.queue.submit(APP, { input });
let status;
do status = await fal.queue.status(APP, { requestId, logs: true });
while (status.status !== "COMPLETED");
say({ requestId, status, result: await fal.queue.result(APP, { requestId }) });
