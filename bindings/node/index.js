'use strict';
/*
 * The backend's end of libhandoff, see include/handoff/backend.h.
 *
 *   lib/library.js     the C library through koffi: structs, calls, errors
 *   lib/connection.js  an adopted connection as a net.Socket
 *   lib/backend.js     the backend and its arrivals
 */

const net = require('net');
const { Backend } = require('./lib/backend');
const { Connection } = require('./lib/connection');
const { HandoffError, version } = require('./lib/library');

function listen(place, options, onArrival) {
  // First: who has no backend cannot close one.
  if (onArrival !== undefined && typeof onArrival !== 'function') {
    throw new TypeError('what listen() takes third is to be a function, which is given the arrivals');
  }
  const backend = new Backend(place, options);
  if (onArrival) backend.on('arrival', onArrival);
  return backend;
}

/** Lets a server serve all that arrives. Closing the server closes the backend, too. */
function serve(server, place, options) {
  if (!(server instanceof net.Server)) {
    throw new TypeError('serve() takes a server of http, https or net first: for an Express app ' +
      'http.createServer(app)');
  }
  const backend = listen(place, options, (arrival) => arrival.serve(server));
  server.once('close', () => backend.close());
  return backend;
}

module.exports = { Backend, Connection, HandoffError, listen, serve, version };
