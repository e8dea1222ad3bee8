'use strict';
/*
 * A connection that was handed over, as a net.Socket. It differs from one that was accepted in this:
 *
 * - The client's address is what the broker says, if it says one.
 * - The broker may still have its copy of the descriptor. close(2) of ours then sends no end, and
 *   destroy() does nothing else: shutdown(2) comes first.
 * - If the kernel does the client's TLS, a record that is no data makes libuv's read(2) fail with
 *   EIO, and an end without close_notify looks like any end. The kernel keeps what it has refused, so
 *   the library is then asked what it was. What is no record at all it says once, by its error.
 */

const net = require('net');
const { errno } = require('os').constants;
const { HandoffError, OK, constant, statusMessage, tlsReceive, tlsShutdown } = require('./library');

const TIMED_OUT = constant('HANDOFF_TIMED_OUT');
const TLS_RECORD = constant('HANDOFF_ERR_TLS_RECORD');
const KEY_UPDATE = constant('HANDOFF_ERR_TLS_KEY_UPDATE');
// What read(2) says of a connection whose TLS the kernel does, as handoff_tls_receive() takes it.
const STATUS_OF = new Map([[-errno.EBADMSG, TLS_RECORD], [-errno.EMSGSIZE, TLS_RECORD],
  [-errno.EINVAL, TLS_RECORD], [-127 /* EKEYEXPIRED */, KEY_UPDATE]]);
const ROOM_MS = 50; // how often to look whether there is room for close_notify

// Not private fields (#): net.Socket's constructor calls methods that look at them already.
const kFd = Symbol('fd');
const kClient = Symbol('client');
const kTls = Symbol('tls');
const kEnded = Symbol('ended');
const kReset = Symbol('reset');

class Connection extends net.Socket {
  constructor(fd, arrival, options) {
    super({ ...options, fd, readable: true, writable: true });
    this[kFd] = fd;
    this[kClient] = arrival.client;
    this[kTls] = arrival.tls;
    // As of tls.TLSSocket: frameworks look at it for the request's scheme.
    if (arrival.tls) this.encrypted = true;
  }

  get remoteAddress() {
    return this[kClient] ? this[kClient].address : super.remoteAddress;
  }

  get remotePort() {
    return this[kClient] ? this[kClient].port : super.remotePort;
  }

  get remoteFamily() {
    if (!this[kClient]) return super.remoteFamily;
    const family = net.isIP(this[kClient].address);
    return family ? `IPv${family}` : undefined;
  }

  push(chunk, encoding) {
    return chunk === null && this[kTls] ? this._endOfTls() : super.push(chunk, encoding);
  }

  destroy(error, callback) {
    if (this[kTls] && error && error.syscall === 'read' && !this.destroyed) {
      if (error.code === 'EIO') {
        this._endOfTls(error);
        return this;
      }
      const status = STATUS_OF.get(error.errno);
      if (status) error = new HandoffError(status, statusMessage(status));
    }
    return super.destroy(error, callback);
  }

  _endOfTls(error) {
    const received = [0];
    const status = tlsReceive(this[kFd], Buffer.alloc(1), 1, 0, received);
    if (status === OK && received[0] === 0) {
      super.push(null);
      this.read(0); // without it 'end' would wait for somebody who reads
    } else {
      super.destroy(status < 0 ? new HandoffError(status) : error);
    }
    return false;
  }

  _final(callback) {
    if (!this[kTls] || this.destroyed) return super._final(callback);
    const status = tlsShutdown(this[kFd], 0);
    if (status === TIMED_OUT) return void setTimeout(() => this._final(callback), ROOM_MS).unref();
    this[kEnded] = true;
    super._final(callback);
  }

  resetAndDestroy() {
    this[kReset] = true; // what ends it is a reset, as soon as the broker has closed its copy
    return super.resetAndDestroy();
  }

  _destroy(error, callback) {
    // Behind a part of what was written, close_notify would make it look whole.
    const isCut = this[kTls] && this.writableLength > 0;
    // A client that has sent a reset, or does not make room for close_notify, needs no end.
    if (this._handle && !this[kEnded] && !this[kReset] && !isCut) tlsShutdown(this[kFd], 0);
    super._destroy(error, callback);
  }
}

module.exports = { Connection };
