'use strict';
// The programs in README.md and the example, run as a user would run them.

const assert = require('assert');
const fs = require('fs');
const path = require('path');
const { spawn } = require('child_process');
const { once } = require('events');
const { test } = require('node:test');
const { Bench, until } = require('./broker');

const README = fs.readFileSync(path.join(__dirname, '../README.md'), 'utf8');
const PROGRAMS = [...README.matchAll(/^```js\n(.*?)^```$/gms)].map(([, program]) => program);

const CASES = [...PROGRAMS.entries()].flatMap(([number, program]) =>
  ['SIGTERM', 'SIGINT'].map((signal) => [number, program, signal]));

for (const [number, program, signal] of CASES) {
  test(`program ${number + 1} of README.md until ${signal}`, { timeout: 60000 }, async (t) => {
    const bench = await Bench.start(t);
    fs.mkdirSync(path.join(bench.directory, 'node_modules'));
    fs.symlinkSync(path.join(__dirname, '..'), path.join(bench.directory, 'node_modules/handoff'));
    const file = path.join(bench.directory, 'program.js');
    assert.ok(program.includes('/run/app/handoff.sock'));
    fs.writeFileSync(file, program.replace('/run/app/handoff.sock', bench.path));

    const backend = spawn(process.execPath, [file], { stdio: ['ignore', 'inherit', 'inherit'] });
    t.after(() => backend.kill('SIGKILL'));
    await until(() => fs.existsSync(bench.path), () => 'it does not listen');
    const descriptors = () => fs.readdirSync(`/proc/${backend.pid}/fd`).length;
    let most;
    for (let number = 0; number < 4; number++) {
      const client = await bench.handOver('GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n',
        { metadata: '{"client":{"address":"2001:db8::7"}}' });
      assert.strictEqual(client.verdict, 'adopted');
      assert.match(await client.rest(), /hello 2001:db8::7\n$/);
      client.socket.end();
      most ??= descriptors(); // it may still have the first client's
    }
    await until(() => descriptors() <= most, () => 'it closes its connections');
    const exit = once(backend, 'exit');
    backend.kill(signal);
    assert.deepStrictEqual(await exit, [0, null]);
    assert.ok(!fs.existsSync(bench.path));
  });
}

test('the example waits for a slow client without a new listener each time', { timeout: 60000 }, async (t) => {
  const bench = await Bench.start(t);
  const file = path.join(__dirname, '../../../examples/node/http_backend.js');
  const backend = spawn(process.execPath, [file, bench.path], { stdio: ['ignore', 'ignore', 'pipe'] });
  t.after(() => backend.kill('SIGKILL'));
  let warnings = '';
  backend.stderr.on('data', (data) => { warnings += data; });
  await until(() => fs.existsSync(bench.path), () => 'it does not listen');
  const client = await bench.handOver('GET /events?n=50000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
  assert.match(await client.rest(), /data: 50000\n\n\r\n0\r\n\r\n$/);
  client.socket.end();
  const end = once(backend, 'close');
  backend.kill('SIGTERM');
  assert.deepStrictEqual(await end, [0, null]);
  assert.strictEqual(warnings, ''); // Node warns of more than ten listeners
});

test('README.md has its programs', () => assert.strictEqual(PROGRAMS.length, 2));
