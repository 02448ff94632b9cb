// Sends `inputs` one after another, each once the one before is answered, then closes.
import { APP, fal, fault, input, options, say } from "./kit.mjs";

const inputs = options.inputs ?? [{ request_id: "one" }, { request_id: "two" }];
const errors = [];
const results = [];
let next = 0;
const connection = fal.realtime.connect(APP, {
  connectionKey: "test",
  throttleInterval: 0,
  maxBuffering: options.maxBuffering,
  path: options.path,
  onResult: (result) => {
    results.push(result);
    proceed();
  },
  onError: (error) => {
    errors.push(fault(error));
    proceed();
  },
});

function proceed() {
  if (next < inputs.length) return connection.send({ ...input, sync_mode: true, ...inputs[next++] });
  if (next++ > inputs.length) return;
  connection.close();
  // onclose, and with it onError, comes after the server has answered the Close frame.
  setTimeout(() => {
    say({ results, errors });
    process.exit();
  }, options.lingerMs ?? 300);
}
proceed();
