'use strict';
// The broker's end for the tests, and clients for it. Node's own sockets are what is handed over:
// while a server has pauseOnConnect, libuv does not watch what it accepts.

const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');
const { once } = require('events');
const koffi = require('koffi');
const c = require('../lib/library');

const Offer = c.struct('handoff_offer', {
  size: 'size_t',
  fd: 'int',
  flags: 'uint32_t',
  preread: 'void *',
  preread_len: 'size_t',
  preread_iov: 'void *',
  preread_iov_len: 'size_t',
  metadata: 'void *',
  metadata_len: 'size_t',
  service: 'str',
  correlation: 'str',
  user_data: 'void *',
  timeout_ms: 'uint64_t',
});
const Verdict = c.struct('handoff_verdict', {
  size: 'size_t',
  id: 'uint64_t',
  user_data: 'void *',
  outcome: 'uint32_t',
  reason: 'uint32_t',
  may_have_reached_backend: 'uint32_t',
  attempts: 'uint32_t',
  backend: 'str',
  kind: 'uint32_t',
  reserved: 'uint32_t',
});

const newBroker = c.call('handoff_broker_new', 'int32_t', 'str', 'void *', koffi.out('void **'));
const brokerFd = c.call('handoff_broker_fd', 'int', 'void *');
const offer = c.call('handoff_broker_offer', 'int32_t', 'void *', koffi.pointer(Offer),
  koffi.out('uint64_t *'));
const dispatch = c.call('handoff_broker_dispatch', 'int32_t', 'void *');
const next = c.call('handoff_broker_next', 'int32_t', 'void *',
  koffi.inout(koffi.pointer(Verdict)));
const free = c.call('handoff_broker_free', 'void', 'void *');
const reasonName = c.call('handoff_reason_name', 'str', 'uint32_t');

const WAIT = ['HANDOFF_ERR_BACKEND_UNAVAILABLE', 'HANDOFF_ERR_FULL'].map(c.constant);
const ADOPTED = c.constant('HANDOFF_ADOPTED');

class Broker {
  #handle;
  #poll;
  #waiting = []; // offers for which there is no channel or no room yet
  #offered = new Map();

  constructor(socketPath) {
    const handle = [null];
    c.check(newBroker(socketPath, null, handle));
    this.#handle = handle[0];
    this.#poll = koffi.node.poll(brokerFd(this.#handle), () => setImmediate(() => this.#turn()));
  }

  /** Resolves with 'adopted' or with the reason of the fallback. */
  offer(fd, { preread = '', metadata = '', service = null, correlation = null, timeout = 0 } = {}) {
    const what = { ...c.empty(Offer), fd, service, correlation, timeout_ms: timeout };
    [what.preread, what.metadata] = [Buffer.from(preread), Buffer.from(metadata)];
    [what.preread_len, what.metadata_len] = [what.preread.length, what.metadata.length];
    return new Promise((resolve, reject) => {
      this.#waiting.push({ what, resolve, reject });
      this.#turn();
    });
  }

  #turn() {
    if (!this.#handle) return;
    c.check(dispatch(this.#handle));
    const verdict = c.empty(Verdict);
    while (next(this.#handle, verdict) === c.OK) {
      const resolve = this.#offered.get(verdict.id);
      this.#offered.delete(verdict.id);
      resolve(verdict.outcome === ADOPTED ? 'adopted' : reasonName(verdict.reason));
    }
    while (this.#waiting.length > 0) {
      const { what, resolve, reject } = this.#waiting[0];
      const id = [0];
      const status = offer(this.#handle, what, id);
      if (WAIT.includes(status)) return;
      this.#waiting.shift();
      if (status === c.OK) this.#offered.set(id[0], resolve);
      else reject(new c.HandoffError(status));
    }
  }

  close() {
    this.#poll.close();
    free(this.#handle);
    this.#handle = null;
  }
}

/** A client's end of a connection, which is TCP or has a Unix socket. */
class Client {
  #data = Buffer.alloc(0);
  #more = () => {};
  ended = false;
  error = null;

  constructor(socket) {
    this.socket = socket;
    socket.on('data', (data) => {
      this.#data = Buffer.concat([this.#data, data]);
      this.#more();
    });
    socket.on('end', () => this.#end());
    socket.on('error', (error) => this.#end(error));
    socket.on('close', () => this.#end());
  }

  #end(error = null) {
    this.ended = true;
    this.error ??= error;
    this.#more();
  }

  /** What comes, as soon as `length(data)` says how much of it is wanted; all, at the end. */
  async take(length) {
    for (;;) {
      const wanted = this.ended ? this.#data.length : length(this.#data);
      if (wanted !== -1) {
        const taken = this.#data.subarray(0, wanted);
        this.#data = this.#data.subarray(wanted);
        return taken;
      }
      await new Promise((resolve) => { this.#more = resolve; });
    }
  }

  bytes(count) {
    return this.take((data) => (data.length >= count ? count : -1));
  }

  async rest() {
    return (await this.take(() => -1)).toString();
  }

  /** An answer whose length its head says. */
  async answer() {
    const head = (await this.take((data) => {
      const end = data.indexOf('\r\n\r\n');
      return end === -1 ? -1 : end + 4;
    })).toString();
    const length = /^content-length: (\d+)/im.exec(head);
    const body = length ? (await this.bytes(Number(length[1]))).toString('latin1') : '';
    return { status: Number(head.split(' ')[1]), head, body };
  }
}

/** A test's directory, its broker and its clients. */
class Bench {
  static async start(test) {
    const bench = new Bench();
    bench.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'handoff-node-'));
    bench.path = path.join(bench.directory, 'handoff.sock');
    bench.connections = new Map(); // by the client's port
    bench.server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true },
      (accepted) => bench.connections.set(accepted.remotePort, accepted));
    bench.server.listen(0, '127.0.0.1');
    await once(bench.server, 'listening');
    bench.sockets = new Set();
    test.after(() => bench.#stop());
    return bench;
  }

  #stop() {
    for (const socket of this.sockets) socket.destroy();
    this.server.close();
    this.ownBroker?.close();
    fs.rmSync(this.directory, { recursive: true });
  }

  get broker() {
    return this.ownBroker ??= new Broker(this.path);
  }

  /** A client, and the broker's end of its connection. */
  async connect() {
    const { address, port } = this.server.address();
    const socket = net.connect({ host: address, port, allowHalfOpen: true });
    await once(socket, 'connect');
    const accepted = await this.#accepted(socket.localPort);
    for (const one of [socket, accepted]) {
      this.sockets.add(one);
      one.once('close', () => this.sockets.delete(one));
    }
    return { client: new Client(socket), accepted };
  }

  /** The broker's end of the connection that comes from `port`: several may connect at once. */
  async #accepted(port) {
    while (!this.connections.has(port)) await once(this.server, 'connection');
    const accepted = this.connections.get(port);
    this.connections.delete(port);
    return accepted;
  }

  /** Hands a client over that has sent `preread`, which the broker has read. Gives the client. */
  async handOver(preread = '', what = {}) {
    const { client, accepted } = await this.connect();
    client.verdict = await this.broker.offer(accepted._handle.fd, { preread, ...what });
    if (what.keepCopy) client.copy = accepted;
    else accepted.destroy(); // close(2) alone
    return client;
  }
}

/** Resolves when it is true. */
async function until(isTrue, what) {
  for (const end = Date.now() + 30000; !isTrue();) {
    if (Date.now() > end) throw new Error(`waited in vain: ${what()}`);
    await new Promise((resolve) => { setTimeout(resolve, 5); });
  }
}

function descriptors() {
  return fs.readdirSync('/proc/self/fd').length;
}

module.exports = { Bench, Broker, Client, descriptors, until };
