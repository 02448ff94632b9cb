import { fal, options, say } from "./kit.mjs";

const bytes = new Uint8Array(options.size).map((_, index) => index % 251);
const url = await fal.storage.upload(new File([bytes], options.name, { type: options.type }));
const answer = await fetch(url);
const stored = new Uint8Array(await answer.arrayBuffer());
say({
  url,
  status: answer.status,
  type: answer.headers.get("content-type"),
  same: stored.length === bytes.length && stored.every((byte, index) => byte === bytes[index]),
});
