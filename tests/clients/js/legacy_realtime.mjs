// The oldest clients never close: each input is sent once the one before is answered, then the program ends.
import { APP, fal, fault, input, options, say } from "./kit.mjs";

const inputs = options.inputs ?? [{ request_id: "one" }, { request_id: "two" }];
const results = [];
const errors = [];
const connection = fal.realtime.connect(APP, {
  connectionKey: "test",
  throttleInterval: 0,
  onResult: (result) => proceed(results.push(result)),
  onError: (error) => proceed(errors.push(fault(error))),
});

function proceed() {
  const next = results.length + errors.length;
  if (next < inputs.length) return connection.send({ ...input, sync_mode: true, ...inputs[next] });
  say({ results, errors });
  process.exit();
}
proceed();
