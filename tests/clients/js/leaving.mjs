import { APP, fal, fault, input, options, say } from "./kit.mjs";

// A balancer tells the queue's calls by their paths.
fal.config({
  requestMiddleware: async (request) => ({
    ...request,
    url: request.url.replace("https://queue.fal.run", options.queue),
  }),
});

const updates = [];
try {
  const onQueueUpdate = ({ status }) => updates.push(status);
  const result = await fal.subscribe(APP, { input, mode: "streaming", onQueueUpdate });
  say({ updates, result });
} catch (error) {
  say({ updates, error: fault(error) });
}
