'use strict';
/*
 * The backend: it waits for arrivals in libuv's loop, as any socket does.
 *
 * The library's descriptor is an epoll(7) descriptor, which net.Socket refuses; koffi has libuv's
 * uv_poll_t for it. So nothing blocks: no thread of the pool, of which there are four and which files
 * and dns need, and no thread of its own. Any number of backends can be in one process, all in its main
 * thread: koffi does not close its uv_poll_t when a worker thread ends, be it by terminate() or by an
 * exception, and libuv would call into what is gone.
 */

const EventEmitter = require('events');
const fs = require('fs');
const http = require('http');
const { isMainThread } = require('worker_threads');
const koffi = require('koffi');
const c = require('./library');
const { Connection } = require('./connection');

const NOTHING = c.constant('HANDOFF_NOTHING');
const BUSY = c.constant('HANDOFF_REASON_BACKEND_BUSY');
const REJECTED = c.constant('HANDOFF_REASON_REJECTED');
const TAKEN_BACK = c.constant('HANDOFF_ERR_TAKEN_BACK');
const CLOSED = c.constant('HANDOFF_ERR_CLOSED');

// http.Server begins to look after its timeouts when it listens. A program's own listeners are not told
// that it does: it has no address.
const ON_LISTENING = http.createServer().listeners('listening');

// ---- options -------------------------------------------------------------------------------------

const LIMITS = {
  mode: 'mode',
  backlog: 'backlog',
  maxChannels: 'max_channels',
  maxChannelsPerUser: 'max_channels_per_user',
  maxInFlight: 'max_in_flight',
  maxOfferBytes: 'max_offer_bytes',
  maxHeldBytes: 'max_held_bytes',
  maxKeptBytes: 'max_kept_bytes',
};
const MAYBE_UNLIMITED = ['maxHeldBytes', 'maxKeptBytes'];

function number(name, value, max) {
  if (!Number.isInteger(value) || value < 0 || value > max) {
    throw new RangeError(`${name} is to be a number from 0 to ${max}`);
  }
  return value;
}

function ids(name, list) {
  if (!Array.isArray(list)) throw new TypeError(`${name} is to be an array of numbers`);
  return Uint32Array.from(list, (id) => number(`each of ${name}`, id, 0xffffffff));
}

function toC(given = {}) {
  if (given === null || typeof given !== 'object' || Array.isArray(given)) {
    throw new TypeError('the options are to be an object, such as { maxInFlight: 64 }');
  }
  const { users = [], groups = [], ...limits } = given;
  const [userIds, groupIds] = [ids('users', users), ids('groups', groups)];
  const options = c.empty(c.BackendOptions);
  for (const [name, value] of Object.entries(limits)) {
    if (!Object.hasOwn(LIMITS, name)) throw new TypeError(`there is no option ${name}`);
    options[LIMITS[name]] = value === Infinity && MAYBE_UNLIMITED.includes(name)
      ? c.NO_LIMIT : number(name, value ?? 0, 0x7fffffff);
  }
  if (userIds.length > 0 || groupIds.length > 0) {
    options.policy = {
      ...c.empty(c.PeerPolicy),
      users: userIds,
      users_len: userIds.length,
      groups: groupIds,
      groups_len: groupIds.length,
    };
  }
  return options;
}

// ---- an arrival ----------------------------------------------------------------------------------

/** Whom the connection is from, as docs/protocol.md says, if the metadata says it; null otherwise. */
function clientOf(metadata) {
  let client;
  try {
    ({ client } = JSON.parse(metadata.toString()));
  } catch {
    return null;
  }
  if (!client || typeof client.address !== 'string' || client.address === '') return null;
  const { address, port } = client;
  return { address, port: Number.isInteger(port) && port > 0 && port < 65536 ? port : undefined };
}

class Arrival {
  #backend;
  #client;

  constructor(backend, arrival) {
    this.#backend = backend;
    this.id = arrival.id;
    // Copies: the library's are valid only until the next dispatch.
    this.preread = c.bytes(arrival.preread, arrival.preread_len);
    this.metadata = c.bytes(arrival.metadata, arrival.metadata_len);
    this.service = arrival.service;
    this.correlation = arrival.correlation;
    this.broker = {
      pid: arrival.broker_pid,
      uid: arrival.broker_uid,
      gid: arrival.broker_gid,
    };
    this.tls = arrival.tls !== 0;
  }

  get client() {
    if (this.#client === undefined) this.#client = clientOf(this.metadata);
    return this.#client;
  }

  adopt(options) {
    const connection = this.#backend._adopt(this, options);
    if (connection && this.preread.length > 0) connection.unshift(this.preread);
    return connection;
  }

  reject(reason = 'REJECTED') {
    this.#backend._reject(this, reason);
  }

  serve(server) {
    this.#backend._serve(this, server);
  }
}

// ---- the backend ---------------------------------------------------------------------------------

class Backend extends EventEmitter {
  #handle;
  #poll;
  #due = false;
  #warned = false;
  #closed = null;
  #connections = new Set();
  // Nobody can decide about an arrival that nobody has: without this it would be held for ever.
  #undecided = new FinalizationRegistry((id) => {
    if (!this.#handle) return;
    c.backendReject(this.#handle, id, BUSY);
    this.#soon(); // sends it
  });
  #servers = new Map(); // and the listener that each has for its requests
  #responses = new Map(); // the last response of each connection that waits for one

  constructor(place, options) {
    super({ captureRejections: true });
    if (!isMainThread) throw new Error('a backend is for the main thread, not for a worker thread');
    const handle = [null];
    if (typeof place === 'string') {
      if (place.includes('\0')) throw new TypeError('a path has no NUL');
      c.check(c.backendListen(place, toC(options), handle));
    } else if (typeof place?.fd === 'number') {
      c.check(c.backendListenOn(number('fd', place.fd, 0x7fffffff), toC(options), handle));
    } else {
      throw new TypeError("the place to listen at is to be a path, such as '/run/app/handoff.sock', " +
        'or { fd }');
    }
    this.#handle = handle[0];
    try {
      // The first use, which makes what the second one returns.
      c.check(c.backendDispatch(this.#handle));
      this.#poll = koffi.node.poll(c.backendFd(this.#handle), () => this.#soon());
    } catch (error) {
      c.backendFree(this.#handle);
      throw error;
    }
  }

  get #open() {
    if (!this.#handle) throw new c.HandoffError(CLOSED, 'this backend is closed');
    return this.#handle;
  }

  get connections() {
    return this.#connections.size;
  }

  get statistics() {
    const statistics = c.empty(c.BackendStatistics);
    c.check(c.backendStatistics(this.#open, statistics));
    return Object.fromEntries(c.COUNTS.map((name) => [
      name.replace(/_./g, (letters) => letters[1].toUpperCase()), statistics[name]]));
  }

  // As those of net.Server.
  ref() {
    if (this.#handle) this.#poll.ref();
    return this;
  }

  unref() {
    if (this.#handle) this.#poll.unref();
    return this;
  }

  /** Drains: a successor may listen. Resolves when all that was adopted has ended. */
  close() {
    if (!this.#closed) {
      this.#closed = new Promise((resolve) => this.once('close', resolve));
      c.check(c.backendDrain(this.#handle));
      this.#soon();
      for (const response of this.#responses.values()) sayClose(response);
      this.#closeIdle();
    }
    return this.#closed;
  }

  // koffi calls back from libuv without running the queues of nextTick and of promises after it, and
  // cannot take an exception. A callback of setImmediate, which runs at the end of this very turn of
  // the loop, can do what any can.
  #soon() {
    if (this.#due) return;
    this.#due = true;
    setImmediate(() => {
      this.#due = false;
      if (this.#handle) this.#takeArrivals();
    });
  }

  #takeArrivals() {
    const arrival = c.empty(c.Arrival);
    let status = c.backendDispatch(this.#handle);
    while (status === c.OK && (status = c.backendNext(this.#handle, arrival)) === c.OK) {
      const told = new Arrival(this, arrival);
      this.#undecided.register(told, told.id, told);
      this.#tell(told);
    }
    if (status !== NOTHING) this.emit('error', new c.HandoffError(status));
    if (this.#closed && this.statistics.held === 0) this.#free();
  }

  #tell(arrival) {
    let told = false;
    try {
      told = this.emit('arrival', arrival);
    } finally {
      // Nobody will decide about it now; if the listener has done so before it threw, this does nothing.
      if (!told) c.backendReject(this.#handle, arrival.id, REJECTED);
    }
    if (!told && !this.#warned) {
      this.#warned = true;
      process.emitWarning("arrivals are rejected, because nobody listens to the backend's 'arrival': " +
        'give listen() a function');
    }
  }

  /** A listener that is async has thrown: as in #tell(). */
  [Symbol.for('nodejs.rejection')](error, event, arrival) {
    if (event === 'arrival' && this.#handle) {
      c.backendReject(this.#handle, arrival.id, REJECTED);
      this.#soon(); // sends it
    }
    throw error;
  }

  #free() {
    this.#poll.close(); // first: the descriptor is the handle's
    c.backendFree(this.#handle);
    this.#handle = null;
    this.#emitCloseIfDone();
  }

  #emitCloseIfDone() {
    if (this.#handle || this.#connections.size > 0) return;
    for (const [server, listener] of this.#servers) server.removeListener('request', listener);
    this.emit('close');
  }

  // Not for users: an arrival's methods are.
  _adopt(arrival, options) {
    const fd = [-1];
    const status = c.backendAdopt(this.#open, arrival.id, fd);
    if (this.#closed) this.#soon();
    if (status === c.OK || status === TAKEN_BACK) this.#undecided.unregister(arrival);
    if (status === TAKEN_BACK) return null;
    c.check(status);
    let connection;
    try {
      connection = new Connection(fd[0], arrival, options);
    } catch (error) {
      c.tlsShutdown(fd[0], 0);
      fs.closeSync(fd[0]);
      if (error.code === 'ERR_INVALID_FD_TYPE') return null; // neither TCP nor a Unix socket
      throw error;
    }
    this.#connections.add(connection);
    connection.once('close', () => {
      this.#connections.delete(connection);
      this.#emitCloseIfDone();
    });
    return connection;
  }

  _reject(arrival, reason) {
    c.check(c.backendReject(this.#open, arrival.id, c.constant(`HANDOFF_REASON_${reason}`)));
    this.#undecided.unregister(arrival);
    if (this.#closed) this.#soon();
  }

  _serve(arrival, server) {
    if (server.maxConnections > 0 && this.#connections.size >= server.maxConnections) {
      return arrival.reject('BACKEND_BUSY');
    }
    this.#prepare(server);
    const connection = arrival.adopt({ allowHalfOpen: server.allowHalfOpen });
    if (!connection) return;
    if (server.noDelay) connection.setNoDelay(true);
    if (server.keepAlive) connection.setKeepAlive(true, server.keepAliveInitialDelay);
    // The server's parser, of HTTP or of TLS, is given the preread in the next tick. What the client
    // sends is read after that.
    server.emit('connection', connection);
  }

  #prepare(server) {
    if (this.#servers.has(server)) return;
    if (!server.listening) {
      const has = server.listeners('listening');
      for (const own of ON_LISTENING) if (has.includes(own)) own.call(server);
    }
    const listener = ({ socket }, response) => {
      if (this.#closed) sayClose(response);
      this.#responses.set(socket, response);
      response.once('close', () => {
        if (this.#responses.get(socket) === response) this.#responses.delete(socket);
        if (this.#closed) this.#closeIdle();
      });
    };
    this.#servers.set(server, listener);
    server.prependListener('request', listener);
  }

  #closeIdle() {
    for (const server of this.#servers.keys()) server.closeIdleConnections?.();
  }
}

/** The connection ends with this answer, and the client knows that it does. */
function sayClose(response) {
  if (!response.headersSent) response.setHeader('Connection', 'close');
}

module.exports = { Backend };
