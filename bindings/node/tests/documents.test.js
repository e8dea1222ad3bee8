'use strict';
// The programs in README.md, run as a user would run them.

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

test('README.md has its programs', () => assert.strictEqual(PROGRAMS.length, 2));
