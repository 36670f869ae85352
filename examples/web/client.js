// A small client for trio_sched: calls of importable Python functions over a WebSocket.
//
//     const scheduler = await Scheduler.connect("ws://127.0.0.1:8787/", token);
//     const value = await scheduler.submit("math:factorial", [20]);
//     scheduler.close();
//
// The messages are those of the native protocol (docs/wire.md) as JSON text. The client numbers its tasks; the ids in answers
// have the session's number above the lowest 32 bits. Runs in a browser, and in node (20: --experimental-websocket).

const COUNTER = 2 ** 32;
const ACKNOWLEDGE_MS = 50;

export class RemoteError extends Error {
  constructor(end) {
    super(end.error ? `${end.error.name}: ${end.error.message}` : end.reason || end.outcome);
    this.name = "RemoteError";
    this.outcome = end.outcome;
    this.traceback = end.error ? end.error.traceback : "";
  }
}

export class Scheduler {
  static connect(url, token, options = {}) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(url);
      const scheduler = new Scheduler(socket, options);
      scheduler._ready = { resolve: () => resolve(scheduler), reject };
      socket.onopen = () =>
        scheduler._send({ type: "hello", version: 1, role: "client", token, name: "javascript", cancel_on_leave: true });
      socket.onmessage = (event) => scheduler._receive(JSON.parse(event.data));
      socket.onerror = () => scheduler._end(new Error(`no connection to ${url}`));
      socket.onclose = (event) => scheduler._end(new Error(event.reason || "the connection was closed"));
    });
  }

  constructor(socket, { onchange = () => {} } = {}) {
    this.socket = socket;
    this.session = 0;
    this.tasks = new Map(); // number of a task -> {resolve, reject}
    this.queue = []; // calls that wait for credit
    this.onchange = onchange;
    this._counter = 0;
    this._sent = 0;
    this._accepted = 0;
    this._credit = 0;
    this._received = 0;
    this._timers = [];
  }

  // Call "module:name" with plain data; `options` as in docs/wire.md (priority, retries, timeout_s, after, ...).
  submit(call, args = [], kwargs = {}, options = undefined) {
    const id = ++this._counter;
    const done = new Promise((resolve, reject) => this.tasks.set(id, { resolve, reject }));
    done.id = id; // for cancel() and for the `after` of other tasks
    this.queue.push({ id, call, args, kwargs, options });
    if (this.queue.length === 1) queueMicrotask(() => this._flush()); // one message for all that are submitted together
    this.onchange(this);
    return done;
  }

  cancel(...promises) {
    this._flush();
    this._send({ type: "cancel", tasks: promises.map((promise) => promise.id) });
  }

  close() {
    this._timers.forEach(clearInterval);
    this._send({ type: "bye", cancel: true });
    this.socket.close();
  }

  _send(message) {
    if (this.socket.readyState === 1) this.socket.send(JSON.stringify(message));
  }

  _flush() {
    const room = this._credit - (this._sent - this._accepted);
    const tasks = this.queue.splice(0, Math.max(0, room));
    if (tasks.length === 0) return;
    this._sent += tasks.length;
    this._send({ type: "submit", tasks, received: this._received });
  }

  _receive(message) {
    switch (message.type) {
      case "welcome":
        this.session = message.session;
        this._credit = message.credit || 1000;
        this._timers.push(setInterval(() => this._ping(), 1000 * (message.heartbeat_s || 2)));
        this._ready.resolve();
        break;
      case "results":
        this._received = message.seq;
        for (const end of message.results) this._settle(end);
        if (!this._acknowledging) this._acknowledging = setTimeout(() => this._ping(), ACKNOWLEDGE_MS);
        break;
      case "refused":
        this._settle({ id: message.id, outcome: "refused", reason: message.reason });
        break;
      case "error":
        this._end(new Error(message.message));
        break;
      case "closing":
        this._end(new Error(message.reason || "the scheduler shuts down"));
        break;
    }
    if (message.accepted > this._accepted) {
      this._accepted = message.accepted;
      this._flush();
    }
    this.onchange(this);
  }

  _ping() {
    clearTimeout(this._acknowledging);
    this._acknowledging = undefined;
    this._send({ type: "ping", received: this._received });
  }

  _settle(end) {
    const id = end.id % COUNTER;
    const task = this.tasks.get(id);
    if (!task) return;
    this.tasks.delete(id);
    if ((end.outcome || "ok") === "ok") task.resolve(end.value ?? null);
    else task.reject(new RemoteError(end));
  }

  _end(error) {
    this._timers.forEach(clearInterval);
    clearTimeout(this._acknowledging);
    this._ready.reject(error);
    for (const task of this.tasks.values()) task.reject(error);
    this.tasks.clear();
    this.onchange(this);
  }
}
