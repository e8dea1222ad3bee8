'use strict';
// What an ordinary server makes of connections that arrive.

const assert = require('assert');
const crypto = require('crypto');
const http = require('http');
const net = require('net');
const { once } = require('events');
const { test } = require('node:test');
const { setTimeout: pause } = require('timers/promises');
const handoff = require('..');
const { Bench, until } = require('./broker');

const GET = 'GET /hello HTTP/1.1\r\nHost: x\r\n\r\n';
const LIMIT = { timeout: 60000 };

function echo(request, response) {
  const body = [];
  request.on('data', (data) => body.push(data));
  request.on('end', () => {
    const { remoteAddress, remotePort, remoteFamily } = request.socket;
    const answer = Buffer.concat(body);
    response.setHeader('X-Client', `${remoteAddress} ${remotePort} ${remoteFamily}`);
    response.setHeader('Content-Length', answer.length || Buffer.byteLength(request.url));
    response.end(answer.length ? answer : request.url);
  });
}

async function start(t, handler = echo, options = {}) {
  const bench = await Bench.start(t);
  bench.http = http.createServer(options, handler);
  bench.backend = handoff.serve(bench.http, bench.path);
  t.after(() => {
    bench.backend.close();
    bench.http.closeAllConnections();
  });
  return bench;
}

async function hello(client) {
  const answer = await client.answer();
  assert.deepStrictEqual([answer.status, answer.body], [200, '/hello'], answer.head);
  return answer;
}

test('a head is put together wherever the broker has cut it', LIMIT, async (t) => {
  const bench = await start(t);
  for (let length = 0; length <= GET.length; length++) {
    const client = await bench.handOver(GET.slice(0, length));
    assert.strictEqual(client.verdict, 'adopted');
    client.socket.write(GET.slice(length));
    await hello(client);
  }
});

test('what the client has sent before the adoption comes after the preread', LIMIT, async (t) => {
  const bench = await start(t);
  const { client, accepted } = await bench.connect();
  client.socket.write(GET.slice(9) + GET);
  await pause(20); // it is in the socket's buffer
  assert.strictEqual(
    await bench.broker.offer(accepted._handle.fd, { preread: GET.slice(0, 9) }), 'adopted');
  await hello(client);
  await hello(client);
});

test('a connection is kept for more requests', LIMIT, async (t) => {
  const bench = await start(t);
  const client = await bench.handOver(GET);
  for (let i = 0; i < 5; i++) {
    assert.match((await hello(client)).head, /^connection: keep-alive/im);
    client.socket.write(GET.slice(0, 11));
    await pause(2);
    client.socket.write(GET.slice(11));
  }
});

test('64 KiB of preread with a body that goes on', LIMIT, async (t) => {
  const bench = await start(t);
  const body = crypto.randomBytes(200000);
  const head = `POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n`;
  const request = Buffer.concat([Buffer.from(head), body]);
  const client = await bench.handOver(request.subarray(0, 65536));
  client.socket.write(request.subarray(65536));
  const answer = await client.answer();
  assert.strictEqual(answer.body, body.toString('latin1'));
  client.socket.write(GET);
  await hello(client);
});

test('64 KiB of pipelined requests are answered in order', LIMIT, async (t) => {
  const bench = await start(t, async (request, response) => {
    await pause(Math.random() * 3);
    echo(request, response);
  });
  let requests = '';
  let count = 0;
  for (; requests.length < 65536; count++) requests += GET.replace('hello', count);
  const client = await bench.handOver(requests.slice(0, 65536));
  client.socket.write(requests.slice(65536));
  for (let i = 0; i < count; i++) assert.strictEqual((await client.answer()).body, `/${i}`);
});

test('a WebSocket whose first frame is in the preread', LIMIT, async (t) => {
  const bench = await start(t);
  bench.http.on('upgrade', (request, socket, head) => {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n');
    socket.write(head);
    socket.on('data', (data) => socket.write(data));
    socket.on('end', () => socket.end());
  });
  const upgrade = 'GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n';
  for (const sent of [upgrade, `${upgrade}one`, upgrade.slice(0, 20)]) {
    const client = await bench.handOver(sent);
    client.socket.write(`${upgrade}one`.slice(sent.length));
    assert.strictEqual((await client.answer()).status, 101);
    assert.strictEqual((await client.bytes(3)).toString(), 'one');
    client.socket.write('two');
    assert.strictEqual((await client.bytes(3)).toString(), 'two');
    client.socket.end();
    assert.strictEqual(await client.rest(), '');
  }
});

test('events come one by one', LIMIT, async (t) => {
  const waiting = [];
  const bench = await start(t, (request, response) => {
    response.setHeader('Content-Type', 'text/event-stream');
    response.write('data: 1\n\n');
    waiting.push(response);
  });
  const client = await bench.handOver(GET);
  await client.take((data) => (data.includes('data: 1\n\n\r\n') ? data.length : -1));
  waiting[0].end('data: 2\n\n');
  await client.take((data) => (data.includes('data: 2\n\n\r\n0\r\n\r\n') ? data.length : -1));
});

test('the client is whom the broker names, never whom the request names', LIMIT, async (t) => {
  const bench = await start(t);
  const forged = GET.replace('\r\n\r\n', '\r\nX-Forwarded-For: 192.0.2.9\r\nX-Real-IP: 192.0.2.9\r\n\r\n');
  const deep = '['.repeat(60000);
  for (const [metadata, expected] of [
    ['{"client":{"address":"2001:db8::1","port":4000}}', '2001:db8::1 4000 IPv6'],
    ['{"client":{"address":"192.0.2.1"},"x":1}', '192.0.2.1 undefined IPv4'],
    ['{"client":{"address":"unix:"}}', 'unix: undefined undefined'],
    ['{"client":{"address":"192.0.2.1","port":"x"}}', '192.0.2.1 undefined IPv4'],
    ['{"client":{"address":"192.0.2.1","port":65536}}', '192.0.2.1 undefined IPv4'],
    ['{"client":{"address":7}}'], ['{"client":"192.0.2.1"}'], ['{"client":[]}'], ['{"client":null}'],
    ['{"server":{}}'], ['[]'], ['null'], ['7'], ['{'], [''], [Buffer.from([0xff, 0, 0xc3])], [deep],
    ['{"__proto__":{"client":{"address":"192.0.2.1"}}}'],
  ]) {
    const client = await bench.handOver(forged, { metadata });
    const own = client.socket.address();
    const answer = await hello(client);
    assert.strictEqual(/^x-client: (.*)\r$/im.exec(answer.head)[1],
      expected ?? `${own.address} ${own.port} IPv4`, metadata.slice(0, 60));
  }
});

test('a client may have a Unix socket', LIMIT, async (t) => {
  const bench = await start(t);
  const server = net.createServer({ pauseOnConnect: true }).listen(`${bench.path}.client`);
  t.after(() => server.close());
  const [[accepted], client] = await Promise.all([
    once(server, 'connection'),
    new Promise((resolve) => {
      const socket = net.connect(`${bench.path}.client`, () => resolve(socket));
    })]);
  assert.strictEqual(await bench.broker.offer(accepted._handle.fd, { preread: GET }), 'adopted');
  accepted.destroy();
  const [data] = await once(client, 'data');
  assert.match(data.toString(), /^HTTP\/1.1 200 /);
  client.destroy();
});

test('a client that has half-closed is answered', LIMIT, async (t) => {
  const bench = await start(t);
  const client = await bench.handOver(GET);
  client.socket.end();
  await hello(client);
  assert.strictEqual(await client.rest(), '');
});

test('the server ends a connection though the broker keeps its copy', LIMIT, async (t) => {
  const bench = await start(t, (request, response) => {
    if (request.url === '/destroy') response.socket.destroy();
    else echo(request, response);
  });
  for (const request of [GET.replace('\r\n\r\n', '\r\nConnection: close\r\n\r\n'),
    GET.replace('1.1', '1.0'), GET.replace('hello', 'destroy'), 'garbage\r\n\r\n']) {
    const client = await bench.handOver(request, { keepCopy: true });
    await client.rest();
    assert.strictEqual(client.error, null, request);
    client.copy.destroy();
  }
});

test('who waits for the server to listen is not told, because it has no address', LIMIT, async (t) => {
  const bench = await start(t);
  const addresses = [];
  bench.http.on('listening', () => addresses.push(bench.http.address()));
  await hello(await bench.handOver(GET));
  assert.deepStrictEqual(addresses, []);
  bench.http.listen(0, '127.0.0.1');
  await once(bench.http, 'listening');
  await hello(await bench.handOver(GET));
  assert.strictEqual(addresses.length, 1);
  bench.http.close();
});

test('the server limits how long a head may take', LIMIT, async (t) => {
  const bench = await start(t, echo,
    { headersTimeout: 200, requestTimeout: 300, connectionsCheckingInterval: 50 });
  for (const sent of ['', GET.slice(0, 20)]) {
    const client = await bench.handOver(sent);
    assert.match(await client.rest(), /^HTTP\/1.1 408 /);
  }
});

test('the server limits how long an idle connection is kept', LIMIT, async (t) => {
  const bench = await start(t, echo, { keepAliveTimeout: 50 });
  const client = await bench.handOver(GET, { keepCopy: true });
  await hello(client);
  assert.strictEqual(await client.rest(), '');
  assert.strictEqual(client.error, null);
});

test('a connection beyond maxConnections stays the broker\'s', LIMIT, async (t) => {
  const bench = await start(t);
  bench.http.maxConnections = 2;
  const clients = [await bench.handOver(GET), await bench.handOver(GET)];
  assert.strictEqual((await bench.handOver(GET)).verdict, 'backend busy');
  await hello(clients[0]);
  clients[0].socket.destroy();
  await until(() => bench.backend.connections === 1, () => bench.backend.connections);
  assert.strictEqual((await bench.handOver(GET)).verdict, 'adopted');
});

test('close() finishes what has begun, ends what is idle, and a successor goes on', LIMIT, async (t) => {
  const waiting = [];
  const bench = await start(t, (request, response) => {
    if (request.url === '/wait') waiting.push(response);
    else if (request.url === '/events') waiting.push(response.writeHead(200) && response);
    else echo(request, response);
  });
  const idle = await bench.handOver(GET, { keepCopy: true });
  await hello(idle);
  const half = await bench.handOver(GET.slice(0, 9));
  const busy = await bench.handOver(GET.replace('hello', 'wait'));
  const events = await bench.handOver(GET.replace('hello', 'events'));
  await until(() => waiting.length === 2, () => waiting.length);
  waiting[1].write('data: 1\n\n');

  const closed = bench.backend.close();
  let done = false;
  closed.then(() => { done = true; });
  assert.strictEqual(await idle.rest(), '');
  const successor = handoff.listen(bench.path, {}, (arrival) => arrival.reject('CLIENT_GONE'));
  assert.strictEqual((await bench.handOver(GET)).verdict, 'client gone');
  half.socket.write(GET.slice(9));
  assert.match((await hello(half)).head, /^connection: close/im);
  waiting[0].end('done');
  assert.match(await busy.rest(), /^HTTP\/1.1 200 .*^connection: close\r$.*done$/ims);
  await pause(20);
  assert.strictEqual(done, false);
  waiting[1].end('data: 2\n\n');
  assert.match(await events.rest(), /data: 1\n\n.*data: 2\n\n\r\n0\r\n\r\n$/s);
  await closed;
  await successor.close();
});

test('close() waits for a client that has sent nothing, but not beyond headersTimeout', LIMIT, async (t) => {
  const bench = await start(t, echo,
    { headersTimeout: 500, requestTimeout: 1000, connectionsCheckingInterval: 50 });
  const [silent, late] = [await bench.handOver(''), await bench.handOver('')];
  const closed = bench.backend.close();
  late.socket.write(GET);
  assert.match((await hello(late)).head, /^connection: close/im);
  assert.match(await silent.rest(), /^HTTP\/1.1 408 /);
  await closed;
});

test('closing the server closes the backend', LIMIT, async (t) => {
  const bench = await start(t);
  const client = await bench.handOver(GET);
  await hello(client);
  const error = await new Promise((resolve) => { bench.http.close(resolve); });
  assert.strictEqual(error.code, 'ERR_SERVER_NOT_RUNNING'); // as README.md says
  await once(bench.backend, 'close');
  assert.strictEqual(await client.rest(), '');
  bench.backend = handoff.serve(bench.http, bench.path); // the server may go on
  const another = await bench.handOver(GET);
  assert.match((await hello(another)).head, /^connection: keep-alive/im);
});

test('clients that reset harm nobody', LIMIT, async (t) => {
  const bench = await start(t, (request, response) => {
    if (request.url === '/long') response.write('x'.repeat(5000000));
    else echo(request, response);
  });
  for (const sent of ['', GET.slice(0, 9), GET, GET.replace('hello', 'long'),
    'POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123', '\0', `GET /${'x'.repeat(65000)}`]) {
    for (const delay of [0, 5]) {
      const client = await bench.handOver(sent);
      await pause(delay);
      client.socket.resetAndDestroy();
    }
  }
  await hello(await bench.handOver(GET));
  await until(() => bench.backend.connections === 1, () => bench.backend.connections);
});
