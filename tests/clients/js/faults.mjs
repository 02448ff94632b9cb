// One call that fails, and what the client makes of it.
import { APP, fal, fault, input, options, say } from "./kit.mjs";

const calls = {
  run: () => fal.run(APP, { input }),
  runWithoutInput: () => fal.run(APP, {}),
  subscribe: () => fal.subscribe(APP, { input, pollInterval: 50 }),
  stream: () => fal.stream(APP, { input }).then((stream) => stream.done()),
  status: () => fal.queue.status(APP, { requestId: options.requestId }),
  result: () => fal.queue.result(APP, { requestId: options.requestId }),
  cancel: () => fal.queue.cancel(APP, { requestId: options.requestId }),
};
try {
  say({ value: await calls[options.call]() });
} catch (error) {
  const fields = options.field && error.getFieldErrors ? error.getFieldErrors(options.field) : undefined;
  say({ ...fault(error), fields });
}
