// Use the client without a page: node --experimental-websocket examples/web/demo.mjs URL TOKEN
import { RemoteError, Scheduler } from "./client.js";

const [url, token] = process.argv.slice(2);
const scheduler = await Scheduler.connect(url, token);

const factorials = await Promise.all([...Array(19).keys()].map((n) => scheduler.submit("math:factorial", [n])));
console.log("factorials", factorials.join(" "));

const text = await scheduler.submit("json:dumps", [{ b: [1, 2], a: null }], { sort_keys: true });
console.log("with keywords", text);

let failure = "none";
try {
  await scheduler.submit("math:sqrt", [-1]);
} catch (error) {
  failure = error instanceof RemoteError ? error.message : `not a RemoteError: ${error}`;
}
console.log("failure", failure);

let expected = 1;
const right = factorials.every((value, n) => value === (expected *= n || 1));
const ok = right && text === '{"a": null, "b": [1, 2]}' && failure.startsWith("ValueError");
console.log(ok ? "OK" : "WRONG");
scheduler.close();
process.exit(ok ? 0 : 1);
