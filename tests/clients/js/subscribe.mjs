import { APP, fal, input, options, say } from "./kit.mjs";

const updates = [];
const result = await fal.subscribe(APP, {
  input,
  logs: true,
  mode: options.mode,
  pollInterval: 50,
  onQueueUpdate: (update) => updates.push({ status: update.status, logs: (update.logs ?? []).map((log) => log.message) }),
});
say({ result, updates });
