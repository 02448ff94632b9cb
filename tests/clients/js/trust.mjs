// Opens https://<name>:<port>/ at 127.0.0.1 and says what Node thinks of the certificate.
import https from "node:https";
import { isIP } from "node:net";

const { name, port } = JSON.parse(process.argv[2]);
const lookup = (_host, { all }, done) => (all ? done(null, [{ address: "127.0.0.1", family: 4 }]) : done(null, "127.0.0.1", 4));
const target = isIP(name) ? { host: "127.0.0.1", checkServerIdentity: () => undefined } : { host: name, lookup };
https
  .get({ ...target, port }, (answer) => console.log("say", JSON.stringify(answer.statusCode)))
  .on("error", (error) => console.log("say", JSON.stringify(error.message)));
