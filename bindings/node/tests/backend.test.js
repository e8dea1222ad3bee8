'use strict';
// The backend, its arrivals and its connections, without a server of HTTP.

const assert = require('assert');
const dns = require('dns');
const fs = require('fs');
const https = require('https');
const net = require('net');
const os = require('os');
const path = require('path');
const tls = require('tls');
const { Worker } = require('worker_threads');
const { execFileSync, spawn, spawnSync } = require('child_process');
const { once } = require('events');
const { test } = require('node:test');
const { setTimeout: pause } = require('timers/promises');
const koffi = require('koffi');
const handoff = require('..');
const c = require('../lib/library');
const { Bench, Broker, descriptors, until } = require('./broker');

const ROOT = path.dirname(__dirname);
const LIMIT = { timeout: 60000 };
const CONNECTIONS = Number(process.env.CONNECTIONS ?? 2000);

async function start(t, onArrival, options) {
  const bench = await Bench.start(t);
  bench.backend = handoff.listen(bench.path, options, onArrival);
  t.after(() => bench.backend.close());
  return bench;
}

function echo(arrival) {
  const socket = arrival.adopt();
  socket.on('error', () => {});
  socket.pipe(socket);
}

test('an arrival says what the broker has told', LIMIT, async (t) => {
  const arrivals = [];
  const bench = await start(t, (arrival) => {
    arrivals.push(arrival);
    echo(arrival);
  });
  const metadata = Buffer.from([0, 0xff, 0x7b, 0x22]);
  const client = await bench.handOver('pre', { metadata, service: 'app', correlation: 'r-1' });
  client.socket.write('read');
  assert.strictEqual((await client.bytes(7)).toString(), 'preread');
  client.socket.end();
  assert.strictEqual(await client.rest(), '');
  await bench.handOver();
  const [arrival, empty] = arrivals;
  assert.deepStrictEqual(arrival.preread, Buffer.from('pre'));
  assert.deepStrictEqual(arrival.metadata, metadata);
  assert.deepStrictEqual([arrival.service, arrival.correlation, arrival.client, arrival.tls],
    ['app', 'r-1', null, false]);
  assert.deepStrictEqual(arrival.broker,
    { pid: process.pid, uid: process.geteuid(), gid: process.getegid() });
  assert.deepStrictEqual([empty.preread.length, empty.metadata.length, empty.service], [0, 0, '']);
  bench.sockets.forEach((socket) => socket.destroy());
});

test('an arrival can be adopted later, until the broker takes it back', LIMIT, async (t) => {
  const arrivals = [];
  const bench = await start(t, (arrival) => arrivals.push(arrival));
  const offers = [bench.handOver('one'), bench.handOver('two', { timeout: 50 })];
  await until(() => arrivals.length === 2, () => arrivals.length);
  assert.strictEqual((await offers[1]).verdict, 'acknowledgement timeout');
  const [one, two] = arrivals.sort((a, b) => a.preread.compare(b.preread));
  assert.strictEqual(two.adopt(), null);
  const socket = one.adopt();
  const client = await offers[0];
  assert.strictEqual(client.verdict, 'adopted');
  assert.throws(() => one.adopt(), { code: 'HANDOFF_ERR_INVALID_ARGUMENT' });
  socket.end('done');
  assert.strictEqual(await client.rest(), 'done');
  client.socket.destroy();
  socket.destroy();
});

test('close() waits for an arrival that is held, and then frees the backend', LIMIT, async (t) => {
  const arrivals = [];
  const bench = await start(t, (arrival) => arrivals.push(arrival));
  const offer = bench.handOver('x');
  await until(() => arrivals.length === 1, () => arrivals.length);
  let done = false;
  const closed = bench.backend.close().then(() => { done = true; });
  await pause(50);
  assert.strictEqual(done, false);
  assert.strictEqual(bench.backend.statistics.held, 1);
  arrivals[0].reject();
  assert.strictEqual((await offer).verdict, 'rejected');
  await closed;
  assert.strictEqual(fs.existsSync(bench.path), false);
  const saysClosed = { code: 'HANDOFF_ERR_CLOSED', errno: 0, message: 'this backend is closed' };
  assert.throws(() => bench.backend.statistics, saysClosed);
  assert.throws(() => arrivals[0].adopt(), saysClosed);
  assert.throws(() => arrivals[0].reject(), saysClosed);
  await bench.backend.close(); // once more
});

test('an arrival that is dropped undecided is rejected when it is collected', LIMIT, async (t) => {
  const bench = await start(t, () => {});
  let verdict;
  bench.handOver('x').then((client) => { verdict = client.verdict; });
  await until(() => bench.backend.statistics.held === 1, () => bench.backend.statistics);
  const closed = bench.backend.close();
  await until(() => {
    global.gc();
    return verdict;
  }, () => bench.backend.statistics);
  assert.strictEqual(verdict, 'backend busy');
  await closed;
});

test('a rejection has its reason', LIMIT, async (t) => {
  const bench = await start(t, (arrival) => {
    assert.throws(() => arrival.reject('BECAUSE'), TypeError);
    assert.throws(() => arrival.reject('RATE_LIMITED\0BECAUSE'), TypeError);
    arrival.reject(arrival.service || undefined);
  });
  assert.strictEqual((await bench.handOver()).verdict, 'rejected');
  assert.strictEqual((await bench.handOver('', { service: 'TOO_LARGE' })).verdict, 'too large');
});

test('what nobody listens to is rejected, with one warning', LIMIT, async (t) => {
  const warnings = [];
  const tell = ({ message }) => warnings.push(message);
  process.on('warning', tell);
  t.after(() => process.off('warning', tell));
  const bench = await start(t);
  for (let number = 0; number < 2; number++) {
    assert.strictEqual((await bench.handOver()).verdict, 'rejected');
  }
  await until(() => warnings.length > 0, () => 'no warning');
  assert.deepStrictEqual(warnings.filter((message) => !message.includes("'arrival'")), []);
  assert.strictEqual(warnings.length, 1);
});

test('destroy() ends the connection though the broker keeps its copy', LIMIT, async (t) => {
  const bench = await start(t, (arrival) => arrival.adopt().destroy());
  const client = await bench.handOver('', { keepCopy: true });
  assert.strictEqual(await client.rest(), '');
  assert.strictEqual(client.error, null);
});

test('resetAndDestroy() resets it, when the broker closes its copy', LIMIT, async (t) => {
  const bench = await start(t, (arrival) => arrival.adopt().resetAndDestroy());
  const client = await bench.handOver('', { keepCopy: true });
  client.copy.destroy();
  await client.rest();
  assert.strictEqual(client.error.code, 'ECONNRESET');
});

test('a server of net gets the preread, and ends when the client does', LIMIT, async (t) => {
  const bench = await Bench.start(t);
  const backend = handoff.serve(net.createServer((socket) => socket.pipe(socket)), bench.path);
  const client = await bench.handOver('a'.repeat(65536));
  client.socket.end('b');
  assert.strictEqual(await client.rest(), `${'a'.repeat(65536)}b`);
  await backend.close();
});

test('a server of https does the TLS of a client that the broker has only looked at', LIMIT, async (t) => {
  const bench = await Bench.start(t);
  const file = (name) => path.join(bench.directory, name);
  execFileSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '1', '-subj',
    '/CN=localhost', '-keyout', file('key'), '-out', file('cert')], { stdio: 'ignore' });
  const server = https.createServer(
    { key: fs.readFileSync(file('key')), cert: fs.readFileSync(file('cert')) },
    (request, response) => {
      if (request.url === '/last') backend.close();
      response.end(`hello ${request.socket.remoteAddress}`);
    });
  const backend = handoff.serve(server, bench.path);
  for (const looked of [false, true]) {
    const { client, accepted } = await bench.connect();
    client.socket.removeAllListeners('data');
    const secure = tls.connect({ socket: client.socket, rejectUnauthorized: false });
    let preread = Buffer.alloc(0);
    if (looked) {
      accepted.resume();
      preread = (await once(accepted, 'data'))[0];
      accepted.pause();
      accepted._handle.readStop();
    }
    await bench.broker.offer(accepted._handle.fd, { preread });
    accepted.destroy();
    secure.write(looked ? 'GET /last HTTP/1.1\r\nHost: x\r\n\r\n'
      : 'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
    let answer = '';
    for await (const data of secure) answer += data;
    assert.match(answer, /^HTTP\/1.1 200 .*^connection: close\r$.*hello 127.0.0.1$/ims);
  }
  await backend.close();
});

test('many backends in one process block neither each other nor the pool of threads', LIMIT, async (t) => {
  const bench = await Bench.start(t);
  const paths = Array.from({ length: 16 }, (_, i) => `${bench.path}.${i}`);
  const backends = paths.map((one) => handoff.listen(one, {}, echo));
  const brokers = paths.map((one) => new Broker(one));
  await pause(20);
  await fs.promises.readFile(__filename);
  await dns.promises.lookup('localhost');
  for (const broker of brokers) {
    const { client, accepted } = await bench.connect();
    assert.strictEqual(await broker.offer(accepted._handle.fd, { preread: 'x' }), 'adopted');
    assert.strictEqual((await client.bytes(1)).toString(), 'x');
    client.socket.destroy();
    accepted.destroy();
  }
  brokers.forEach((broker) => broker.close());
  await Promise.all(backends.map((backend) => backend.close()));
});

// If it could, the end of the thread would be that of the process, by SIGSEGV.
test('a worker thread cannot listen, and its end harms nobody', LIMIT, async (t) => {
  const bench = await start(t, (arrival) => arrival.adopt().end('main'));
  const worker = new Worker(`
    const { parentPort, workerData } = require('worker_threads');
    const handoff = require(workerData.module);
    setInterval(() => {}, 1000);
    try {
      handoff.listen(workerData.path);
      parentPort.postMessage('it listens');
    } catch (error) {
      parentPort.postMessage(error.message);
    }
  `, { eval: true, workerData: { module: require.resolve('..'), path: `${bench.path}.worker` } });
  const [message] = await once(worker, 'message');
  await worker.terminate();
  assert.match(message, /main thread/);
  const client = await bench.handOver();
  assert.strictEqual(await client.rest(), 'main');
  client.socket.destroy();
});

test('a listener that throws loses no other arrival', LIMIT, async (t) => {
  const bench = await Bench.start(t);
  const program = `
    const handoff = require(${JSON.stringify(require.resolve('..'))});
    process.on('uncaughtException', (error) => console.log(error.message));
    const backend = handoff.listen(${JSON.stringify(bench.path)}, {}, (arrival) => {
      if (arrival.service === 'throw') throw new Error('of the listener');
      if (arrival.service === 'later') return Promise.reject(new Error('of the listener'));
      arrival.reject('CLIENT_GONE');
    });
    process.once('SIGTERM', () => backend.close());`;
  const backend = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => backend.kill('SIGKILL'));
  let output = '';
  backend.stdout.on('data', (data) => { output += data; });
  const what = { service: 'throw' };
  const clients = await Promise.all([bench.handOver('', what), bench.handOver(),
    bench.handOver('', what), bench.handOver('', { service: 'later' }), bench.handOver()]);
  assert.deepStrictEqual(clients.map(({ verdict }) => verdict),
    ['rejected', 'client gone', 'rejected', 'rejected', 'client gone']);
  backend.kill('SIGTERM');
  assert.deepStrictEqual(await once(backend, 'close'), [0, null]);
  assert.strictEqual(output, 'of the listener\n'.repeat(3));
});

test('a backend keeps its process only as long as that is wanted', LIMIT, async (t) => {
  const bench = await Bench.start(t);
  const listening = `const handoff = require(${JSON.stringify(ROOT)});
    const backend = handoff.listen(${JSON.stringify(bench.path)}).unref().ref()`;
  const unwanted = spawnSync(process.execPath, ['-e', `${listening}.unref()`], { encoding: 'utf8', ...LIMIT });
  assert.deepStrictEqual([unwanted.status, unwanted.stderr], [0, '']);
  // It drains although it was not to keep the process.
  const closed = `${listening}.unref(); backend.close().then(() => console.log('closed'));
    backend.ref().unref()`;
  assert.strictEqual(execFileSync(process.execPath, ['-e', closed], { encoding: 'utf8', ...LIMIT }), 'closed\n');
  const wanted = spawn(process.execPath, ['-e', `${listening}; setImmediate(() => console.log('on'))`],
    { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => wanted.kill('SIGKILL'));
  const ended = once(wanted, 'close');
  await once(wanted.stdout, 'data');
  const first = await Promise.race([ended, pause(200, 'it goes on')]);
  assert.strictEqual(first, 'it goes on');
});

test(`${CONNECTIONS} connections leave no descriptor and no memory`, LIMIT, async (t) => {
  const bench = await start(t, echo);
  const preread = Buffer.alloc(16384, 'x');
  const metadata = Buffer.alloc(16384, ' ');
  const some = async (count) => {
    for (let i = 0; i < count; i++) {
      const client = await bench.handOver(preread, { metadata });
      if (i % 2) client.socket.resetAndDestroy();
      else await client.bytes(preread.length);
      client.socket.destroy();
    }
    await until(() => bench.backend.connections === 0 && bench.sockets.size === 0,
      () => `${bench.backend.connections}, ${bench.sockets.size}`);
  };
  const memory = () => {
    global.gc();
    const { heapUsed, external } = process.memoryUsage();
    return heapUsed + external;
  };
  await some(CONNECTIONS / 4);
  const before = { descriptors: descriptors(), memory: memory() };
  await some(CONNECTIONS);
  assert.strictEqual(descriptors(), before.descriptors);
  // Each has brought 2 times 16 KiB. Node frees its buffers a little later.
  await until(() => memory() - before.memory < 8192 * CONNECTIONS, () => memory() - before.memory);
});

test('what cannot be listened at has its code and its message', LIMIT, async (t) => {
  const bench = await start(t, echo);
  assert.throws(() => handoff.listen(bench.path),
    (error) => error instanceof handoff.HandoffError &&
      error.code === 'HANDOFF_ERR_ADDRESS_IN_USE' && error.message.includes(bench.path));
  assert.throws(() => handoff.listen(`${bench.directory}/none/x`),
    { code: 'HANDOFF_ERR_LISTEN_FAILED', errno: -os.constants.errno.ENOENT });
  assert.throws(() => handoff.listen(__filename), { code: 'HANDOFF_ERR_NOT_A_SOCKET' });
  assert.throws(() => handoff.listen('x'.repeat(200)), { code: 'HANDOFF_ERR_INVALID_ARGUMENT' });
  assert.throws(() => handoff.listen(`${bench.path}\0x`), TypeError);
  assert.throws(() => handoff.listen({ fd: 0 }), { code: 'HANDOFF_ERR_INVALID_ARGUMENT' });
  for (const place of [undefined, null, {}, 7]) {
    const message = /^the place to listen at is to be a path/;
    assert.throws(() => handoff.listen(place), { name: 'TypeError', message });
    assert.throws(() => handoff.serve(net.createServer(), place), { name: 'TypeError', message });
  }
  assert.throws(() => handoff.listen({ fd: -1 }), RangeError);
});

test('what is no server cannot serve, and nobody listens then', LIMIT, async (t) => {
  const bench = await Bench.start(t);
  for (const server of [undefined, {}, () => {}, bench.path]) {
    assert.throws(() => handoff.serve(server, bench.path),
      { name: 'TypeError', message: /^serve\(\) takes a server/ });
  }
  assert.ok(!fs.existsSync(bench.path));
});

test('what is no function cannot be told of arrivals, and nobody listens then', LIMIT, async (t) => {
  const bench = await Bench.start(t);
  for (const listener of [5, {}, null, 'listener']) {
    assert.throws(() => handoff.listen(bench.path, {}, listener),
      { name: 'TypeError', message: /^what listen\(\) takes third is to be a function/ });
  }
  assert.ok(!fs.existsSync(bench.path));
});

test('options', LIMIT, async (t) => {
  const { path: place } = await Bench.start(t);
  assert.throws(() => handoff.listen(place, { maxchannels: 1 }), TypeError);
  for (const options of [{ maxChannels: -1 }, { maxChannels: 1.5 }, { maxChannels: '1' },
    { maxChannels: Infinity }, { users: [-1] }, { groups: ['staff'] }, { mode: NaN }]) {
    assert.throws(() => handoff.listen(place, options), RangeError);
  }
  for (const list of [33, '33', new Set([33]), {}, null]) {
    assert.throws(() => handoff.listen(place, { users: list }),
      { name: 'TypeError', message: 'users is to be an array of numbers' });
    assert.throws(() => handoff.listen(place, { groups: list }),
      { name: 'TypeError', message: 'groups is to be an array of numbers' });
  }
  for (const options of [5, 'x', null, () => {}, [33]]) {
    assert.throws(() => handoff.listen(place, options),
      { name: 'TypeError', message: /^the options are to be an object/ });
  }
  assert.throws(() => handoff.listen(place, { mode: 0o1000 }), { code: 'HANDOFF_ERR_INVALID_ARGUMENT' });

  const backend = handoff.listen(place, { mode: 0o640, maxHeldBytes: Infinity, users: [0xfffffffe] },
    (arrival) => arrival.reject());
  assert.strictEqual(fs.statSync(place).mode & 0o777, 0o640);
  const broker = new Broker(place);
  await until(() => backend.statistics.refusedUsers > 0, () => backend.statistics);
  assert.strictEqual(backend.statistics.lastRefusedUser, process.geteuid());
  broker.close();
  await backend.close();

  const own = handoff.listen(place, { users: [process.geteuid()], groups: [1, 2] }, (arrival) => arrival.reject());
  const allowed = new Broker(place);
  await until(() => own.statistics.accepted === 1, () => own.statistics);
  allowed.close();
  await own.close();
});

test('a socket that somebody else listens on', LIMIT, async (t) => {
  const libc = koffi.load(null);
  const socket = libc.func('int socket(int, int, int)')(1, 5, 0); // AF_UNIX, SOCK_SEQPACKET
  const bench = await Bench.start(t);
  const address = Buffer.alloc(110);
  address.writeUInt16LE(1);
  address.write(bench.path, 2);
  assert.strictEqual(libc.func('int bind(int, const void *, int)')(socket, address, 110), 0);
  assert.strictEqual(libc.func('int listen(int, int)')(socket, 10), 0);
  const backend = handoff.listen({ fd: socket }, {}, echo);
  fs.closeSync(socket);
  const client = await bench.handOver('x');
  assert.strictEqual((await client.bytes(1)).toString(), 'x');
  client.socket.destroy();
  await backend.close();
});

test('a library whose structs or constants are others is refused', () => {
  for (const [fields, message] of [
    [{ size: 'size_t', fd: 'int' }, /has handoff_arrival\.fd at 16, 4 bytes; .* at 8, 4 bytes$/],
    [{ size: 'uint8_t' }, /has handoff_arrival\.size at 0, 8 bytes; .* at 0, 1 bytes$/],
    [{ nothing: 'size_t' }, /has no handoff_arrival\.nothing$/],
  ]) {
    assert.throws(() => c.struct('handoff_arrival', fields), { name: 'TypeError', message });
  }
  assert.throws(() => c.constant('HANDOFF_NO'), { message: /has no HANDOFF_NO$/ });
});

test('a library that is too old is named with both versions', async (t) => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'handoff-'));
  t.after(() => fs.rmSync(directory, { recursive: true }));
  const source = path.join(directory, 'old.c');
  fs.writeFileSync(source, 'const char *handoff_version(void) { return "0.1.7"; }\n');
  execFileSync(process.env.CC ?? 'cc',
    ['-shared', '-fPIC', '-o', path.join(directory, 'libhandoff.so.0'), source]);
  const env = { ...process.env, LD_LIBRARY_PATH: directory };
  const { stderr } = spawnSync(process.execPath, ['-e', `require(${JSON.stringify(ROOT)})`],
    { env, encoding: 'utf8' });
  const { version } = require('../package.json');
  assert.match(stderr, new RegExp(`Error: libhandoff.so.0 0.1.7 is older than this package, ${version}: ` +
    'it has no handoff_[a-z_]+\\(\\)\n'));
});
