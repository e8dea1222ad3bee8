#!/usr/bin/env node
'use strict';
/*
 * http_backend.js SOCKET: serves handed-over HTTP connections with node:http.
 *
 *   GET /hello             `hello ADDRESS`: the client's address, as the broker knows it
 *   POST /echo             the body
 *   GET /events?n=N&ms=M   N server-sent events, each M milliseconds after the one before
 *
 * SIGTERM or SIGINT: it takes no more, finishes what it has begun, and exits with 0. The same again
 * ends it at once.
 */

const http = require('http');
const { setTimeout: pause } = require('timers/promises');
const handoff = require('../../bindings/node'); // 'handoff' where it is installed

/** Resolves when it takes more. It may never: then the client has gone. */
function writable(response) {
  return new Promise((resolve) => {
    const done = () => {
      response.off('drain', done).off('close', done); // or a long stream would collect them
      resolve();
    };
    response.on('drain', done).on('close', done);
  });
}

async function sendEvents(response, count, ms) {
  response.setHeader('Content-Type', 'text/event-stream');
  for (let number = 1; number <= count && !response.destroyed; number++) {
    if (ms > 0 && number > 1) await pause(ms);
    if (!response.write(`data: ${number}\n\n`)) await writable(response);
  }
  response.end();
}

const server = http.createServer((request, response) => {
  const [path, query] = request.url.split('?', 2);
  response.setHeader('X-Served-By', 'handoff-node');
  if (request.method === 'GET' && path === '/hello') {
    response.end(`hello ${request.socket.remoteAddress}\n`);
  } else if (request.method === 'POST' && path === '/echo') {
    request.pipe(response);
  } else if (request.method === 'GET' && path === '/events') {
    const options = new URLSearchParams(query);
    sendEvents(response, Number(options.get('n')), Number(options.get('ms')));
  } else {
    response.statusCode = 404;
    response.end();
  }
});

if (process.argv.length !== 3) {
  console.error('usage: http_backend.js SOCKET');
  process.exit(2);
}
const backend = handoff.serve(server, process.argv[2]);
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => backend.close());
console.log(`listening on ${process.argv[2]}`);
