// A small client of the points gateway, for browsers and Node 18 or newer. It depends on nothing. Times are seconds.

const ENDED = new Set(["completed", "failed"]);
const RANKS = ["created", "queued", "processing", "completed", "failed"];
const PASSING = new Set([0, 429, 502, 503, 504]); // 0: no answer at all
const LONGEST_PAUSE = 60; // one that is asked for more patience tells the caller instead, unless that waits
const ANSWER_SECONDS = 30;
const UPLOAD_SECONDS = 300;
const LONG_POLL_SECONDS = 30;
const WATCHED_POLL_SECONDS = 5; // where somebody wants to see it move
const CONNECT_SECONDS = 10;
const SILENT_SECONDS = 75; // the gateway pings every 30 s: whoever is silent for longer is gone
const MOST_BREAKS = 3; // of the WebSocket in one wait, which then goes on by polling
const TOLERANCE_SECONDS = 300;

/** Everything that goes wrong but an abort, which throws the signal's own reason. `code` 0: there was no answer. */
export class GatewayError extends Error {
  constructor({ code = 0, errorCode, message, requestId = null, retryAfter = null }, cause) {
    super(message, cause === undefined ? undefined : { cause });
    Object.assign(this, { name: "GatewayError", code, errorCode, requestId, retryAfter });
  }
}

export class Gateway {
  #base;
  #credential;
  #WebSocket;
  #byTicket;
  #tries;

  /** `credential`: an API key, a JWT, or a function that gives one (or a promise of one), asked before each use. */
  constructor(baseUrl, credential, options = {}) {
    this.#base = String(baseUrl).replace(/\/+$/, "");
    this.#credential = typeof credential === "function" ? credential : () => credential;
    this.#WebSocket = "WebSocket" in options ? options.WebSocket : globalThis.WebSocket;
    this.#byTicket = options.ticket ?? typeof document !== "undefined";
    this.#tries = options.tries ?? 5;
  }

  /** The stored task with the `balance` after its charge. Repeated under one Idempotency-Key, so charged once. */
  async submit(modelName, prompt, { imageUrl, params, callbackUrl, idempotencyKey = newKey(), signal } = {}) {
    const body = { modelName, prompt, imageUrl, params, callbackUrl };
    const own = idempotencyKey ? { headers: { "Idempotency-Key": idempotencyKey } } : { tries: 1 };
    return this.#request("POST", "/user/ai/tasks/submit", { json: body, signal, ...own });
  }

  /** `submit`, then `wait`. */
  async run(modelName, prompt, { timeout, onProgress, ...options } = {}) {
    const { taskNo } = await this.submit(modelName, prompt, options);
    return this.wait(taskNo, { timeout, onProgress, signal: options.signal });
  }

  /** The task once it has ended, also where it failed: its `status` tells. It outlives a gateway that restarts. */
  async wait(taskNo, { timeout = 3600, onProgress, signal } = {}) {
    const limit = new Limit(timeout, signal);
    const watch = new Watch(onProgress);
    const pollSeconds = onProgress ? WATCHED_POLL_SECONDS : LONG_POLL_SECONDS;
    try {
      for (let breaks = 0; ; ) {
        const listens = this.#WebSocket && breaks < MOST_BREAKS;
        let pause = 0.5 + Math.random();
        try {
          watch.see(await this.task(taskNo, { wait: listens ? 0 : pollSeconds, signal: limit.signal }));
          if (listens && !watch.isOver) {
            breaks += 1;
            await this.#listen(taskNo, watch, limit.signal);
          }
        } catch (error) {
          if (limit.signal.aborted) throw limit.signal.reason;
          if (!(error instanceof GatewayError && PASSING.has(error.code))) throw error;
          pause = Math.max(pause, error.retryAfter ?? 0);
        }
        if (watch.isOver) return watch.task;
        await sleep(pause, limit.signal);
      }
    } finally {
      limit.end();
    }
  }

  /** The task as it stands, after at most `wait` seconds (up to 60) in which it did not end. */
  async task(taskNo, { wait = 0, signal } = {}) {
    const path = `/user/ai/tasks/${encodeURIComponent(taskNo)}${wait ? `?wait=${wait}` : ""}`;
    return this.#request("GET", path, { signal, timeout: ANSWER_SECONDS + wait });
  }

  /** Takes a task back that is not generated yet; its points are refunded. 409 `NOT_CANCELLABLE` otherwise. */
  async cancel(taskNo, { signal } = {}) {
    return this.#request("POST", `/user/ai/tasks/${encodeURIComponent(taskNo)}/cancel`, { signal });
  }

  /** What `submit` would take now; nothing is charged. */
  async quote(modelName, prompt, { imageUrl, params, signal } = {}) {
    return this.#request("POST", "/user/ai/tasks/quote", { json: { modelName, prompt, imageUrl, params }, signal });
  }

  async models({ signal } = {}) {
    return this.#request("GET", "/user/ai/models", { signal });
  }

  async balance({ signal } = {}) {
    return this.#request("GET", "/user/points/consumption/balance", { signal });
  }

  /** A Blob or File becomes a link, for `imageUrl` and the like: it is in `url`. */
  async upload(file, { signal } = {}) {
    const form = new FormData();
    form.append("file", file);
    return this.#request("POST", "/user/files/upload", { form, signal, timeout: UPLOAD_SECONDS });
  }

  /** Until the task has ended, or the connection has, for whatever reason. */
  async #listen(taskNo, watch, signal) {
    const url = new URL(`${this.#base}/user/ai/tasks/ws`, globalThis.location?.href);
    url.protocol = url.protocol.replace("http", "ws");
    const since = watch.since ? { since: watch.since } : {};
    const hello = this.#byTicket ? null : { type: "auth", token: await within(this.#credential(), signal), ...since };
    if (this.#byTicket) {
      const { ticket } = await this.#request("POST", "/user/ai/tasks/ws-ticket", { signal });
      url.search = new URLSearchParams({ ticket, ...since });
    }
    let socket;
    try {
      socket = new this.#WebSocket(url.href);
    } catch {
      return; // as where it is closed at once: some pages may not have one
    }
    const over = new AbortController();
    let timer;
    try {
      await new Promise((resolve, reject) => {
        const patience = (seconds) => {
          clearTimeout(timer);
          timer = setTimeout(resolve, seconds * 1000);
        };
        const see = (task) => {
          watch.see(task);
          if (watch.isOver) resolve();
        };
        const heed = (message) => {
          patience(SILENT_SECONDS);
          if (message.type === "task") watch.since = message.id;
          if (message.type === "task" && message.data.taskNo === taskNo) see(message.data);
          // What ended just before is told to nobody who comes without `since`: so it is looked at once.
          if (message.type === "auth") this.task(taskNo, { signal }).then(see).catch(reject);
        };
        patience(CONNECT_SECONDS);
        signal.addEventListener("abort", resolve, { signal: over.signal });
        socket.onclose = socket.onerror = resolve;
        socket.onopen = () => hello && socket.send(JSON.stringify(hello));
        socket.onmessage = (event) => {
          try {
            heed(JSON.parse(event.data));
          } catch (error) {
            reject(error);
          }
        };
      });
    } finally {
      clearTimeout(timer);
      over.abort();
      socket.onmessage = socket.onopen = null;
      socket.close();
    }
    signal.throwIfAborted();
  }

  /** `data` of the answer. What may pass is tried again, which every request here may be: a submit has its key. */
  async #request(method, path, { json, form, headers, signal, timeout = ANSWER_SECONDS, tries = this.#tries } = {}) {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.#send(method, path, { json, form, headers, signal, timeout });
      } catch (error) {
        const pause = error.retryAfter ?? 2 ** (attempt - 2) * (0.5 + Math.random() / 2);
        if (!PASSING.has(error.code) || attempt >= tries || pause > LONGEST_PAUSE) throw error;
        await sleep(pause, signal);
      }
    }
  }

  async #send(method, path, { json, form, headers, signal, timeout }) {
    const all = json ? { ...headers, "Content-Type": "application/json" } : { ...headers };
    const body = json ? JSON.stringify(json) : form;
    const limit = new Limit(timeout, signal);
    try {
      all.Authorization = `Bearer ${await within(this.#credential(), limit.signal)}`;
      const response = await reach(this.#base + path, { method, headers: all, body, signal: limit.signal }, signal);
      return read(...response);
    } finally {
      limit.end();
    }
  }
}

/** Whether a webhook is ours: what it says, or a GatewayError `WEBHOOK_INVALID`. `body` is as it came, not parsed. */
export async function verifyWebhook(secret, headers, body, { now = Date.now() / 1000 } = {}) {
  const refuse = (message) => new GatewayError({ code: 400, errorCode: "WEBHOOK_INVALID", message });
  const pairs = typeof headers.entries === "function" ? [...headers.entries()] : Object.entries(headers);
  const named = Object.fromEntries(pairs.map(([name, value]) => [name.toLowerCase(), String(value)]));
  const [id, timestamp, signatures] = ["id", "timestamp", "signature"].map((name) => named[`webhook-${name}`]);
  if (!id || !/^\d+$/.test(timestamp ?? "") || !signatures) throw refuse("a webhook header is missing");
  if (Math.abs(now - Number(timestamp)) > TOLERANCE_SECONDS) throw refuse("the timestamp is too far from now");
  const encoder = new TextEncoder();
  const raw = typeof body === "string" ? encoder.encode(body) : new Uint8Array(body);
  const head = encoder.encode(`${id}.${timestamp}.`);
  const signed = new Uint8Array(head.length + raw.length);
  signed.set(head);
  signed.set(raw, head.length);
  const { subtle } = globalThis.crypto ?? (await import("node:crypto")).webcrypto; // Node 18 has it by import alone
  const hmac = { name: "HMAC", hash: "SHA-256" };
  const key = await subtle.importKey("raw", bytesOf(secret.replace(/^whsec_/, "")), hmac, false, ["verify"]);
  for (const one of signatures.split(" ")) {
    const [version, signature] = one.split(",");
    if (version !== "v1" || !/^[A-Za-z0-9+/]{43}=$/.test(signature ?? "")) continue;
    if (await subtle.verify("HMAC", key, bytesOf(signature), signed)) return JSON.parse(new TextDecoder().decode(raw));
  }
  throw refuse("no signature is right");
}

/** What is known of a task: looks and messages may overtake each other, and what is older is not told. */
class Watch {
  since = null;
  task = null;
  #tell;

  constructor(tell) {
    this.#tell = tell;
  }

  get isOver() {
    return this.task !== null && ENDED.has(this.task.status);
  }

  see(task) {
    const newer = (one) => RANKS.indexOf(one.status) * 1000 + one.progress;
    if (this.isOver || (this.task && newer(task) <= newer(this.task))) return;
    this.task = task;
    this.#tell?.(task);
  }
}

/** A signal that aborts when another does or when its time is over. (`AbortSignal.any` came with Node 20.) */
class Limit extends AbortController {
  constructor(seconds, outer) {
    super();
    const message = `not within ${seconds} s`;
    const expire = () => this.abort(new GatewayError({ errorCode: "TIMEOUT", message }));
    // A timer holds 31 bits of milliseconds.
    this.timer = seconds < 2e6 ? setTimeout(expire, seconds * 1000) : undefined;
    this.outer = outer;
    this.pass = () => this.abort(outer.reason);
    if (outer?.aborted) this.pass();
    outer?.addEventListener("abort", this.pass);
  }

  end() {
    clearTimeout(this.timer);
    this.outer?.removeEventListener("abort", this.pass);
  }
}

/** The answer and its text; what an abort of `signal` did is thrown as its reason, all else as a GatewayError. */
async function reach(url, request, signal) {
  try {
    const response = await fetch(url, request);
    return [response, await response.text()];
  } catch (error) {
    signal?.throwIfAborted();
    throw new GatewayError({ errorCode: "NETWORK", message: `no answer from the gateway: ${error.message}` }, error);
  }
}

function read(response, text) {
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {}
  answer ??= {}; // something between us and the gateway answered
  if (response.ok && answer.code === 200) return answer.data;
  const seconds = parseFloat(response.headers.get("Retry-After"));
  throw new GatewayError({
    code: response.status,
    errorCode: answer.errorCode ?? `HTTP_${response.status}`,
    message: answer.message ?? (text.slice(0, 200) || response.statusText),
    requestId: answer.requestId ?? response.headers.get("X-Request-Id"),
    retryAfter: Number.isFinite(seconds) ? seconds : null,
  });
}

async function sleep(seconds, signal) {
  let timer;
  const over = new Promise((resolve) => (timer = setTimeout(resolve, seconds * 1000)));
  await within(over, signal).finally(() => clearTimeout(timer));
}

/** What the promise gives; throws the signal's reason where that aborts first. */
async function within(promise, signal) {
  if (!signal) return promise;
  let stop;
  const aborted = new Promise((_, reject) => (stop = () => reject(signal.reason)));
  signal.addEventListener("abort", stop);
  if (signal.aborted) stop();
  return Promise.race([promise, aborted]).finally(() => signal.removeEventListener("abort", stop));
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
// Pages that came by plain HTTP have no randomUUID. A key is no secret; it must only not come twice.
const newKey = () => globalThis.crypto?.randomUUID?.() ?? [1, 2, 3].map(() => Math.random().toString(36)).join("-");
