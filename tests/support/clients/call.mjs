// One call of the JavaScript client, told by a JSON object in argv and answered in lines of JSON. See programs.py.

import { readFile } from "node:fs/promises";
import { Gateway, GatewayError, Login, verifyWebhook } from "../../../clients/js/gateway.js";

const say = (line) => console.log(JSON.stringify(line));

async function call(order) {
  if (order.call === "verify") return verifyWebhook(...order.args, order.options);
  const options = { ...order.options };
  if (order.abortAfter) options.signal = AbortSignal.timeout(order.abortAfter * 1000);
  if (["run", "wait"].includes(order.call)) options.onProgress = (task) => say({ progress: task });
  const args = order.call === "upload" ? [new Blob([await readFile(order.args[0])])] : order.args;
  const credentials = [...order.credentials];
  const credential = credentials.length > 1 ? async () => credentials.shift() : credentials[0];
  const login = order.login && new Login(order.url, order.login);
  const own = order.by === "polling" ? { WebSocket: undefined } : { ticket: order.by === "ticket" };
  const gateway = new Gateway(order.url, login || credential, own);
  const [name, group] = order.call.split(".").reverse(); // "submit", "keys.create"
  return (group ? gateway[group] : gateway)[name](...args, options);
}

try {
  say({ result: await call(JSON.parse(process.argv[2])) });
} catch (error) {
  if (error instanceof GatewayError) {
    const { code, errorCode, message, requestId, retryAfter } = error;
    say({ error: { code, errorCode, message, requestId, retryAfter } });
  } else if (error.name === "TimeoutError") {
    say({ error: { errorCode: "ABORTED" } });
  } else {
    throw error;
  }
}
