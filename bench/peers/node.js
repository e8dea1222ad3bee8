// Node: child_process.fork() and send() with a handle. See peer.h for what a peer does.
'use strict';
const child_process = require('child_process');
const fs = require('fs');
const net = require('net');

const parameter = (name, otherwise) => Number(process.env[name] ?? otherwise);
const move = process.env.MODE === 'move';
const count = parameter('COUNT', 1000), warm = parameter('WARM', 0);
const mostInFlight = parameter('IN_FLIGHT', 256), hold = parameter('HOLD', 0);
const preread = Buffer.alloc(move ? parameter('PREREAD', 200) : 200);
const answer = 'HTTP/1.1 200 OK\r\nContent-Length: 128\r\n\r\n' + 'x'.repeat(128);

// Counts handoffs, and takes the time and the processor time of those after the first `warm`.
class Measurement {
  constructor(side) {
    this.side = side;
    this.done = 0;
    this.marks = [];
    if (warm === 0) this.mark();
  }

  mark() {
    const cpu = process.cpuUsage();
    this.marks.push([process.hrtime.bigint(), (cpu.user + cpu.system) * 1000]);
  }

  step() {
    this.done++;
    if (this.done === warm || this.done === warm + count) this.mark();
    return this.done === warm + count;
  }

  report() {
    const [[start, cpuStart], [end, cpuEnd]] = this.marks;
    const peak = /VmHWM:\s+(\d+)/.exec(fs.readFileSync('/proc/self/status'))[1];
    fs.writeSync(1, `${this.side} ${end - start} ${cpuEnd - cpuStart} ${peak}\n`);
  }
}

function backend() {
  const measurement = new Measurement('backend');
  const held = [];
  const acknowledge = (token) => process.send({ token });
  process.on('message', ({ token }, client) => {
    client.on('error', () => {}); // it may end as soon as it has what it wants
    const last = measurement.step();
    if (held.length < hold) {
      held.push([token, client]);
      if (held.length === hold) held.forEach(([token]) => acknowledge(token));
    } else {
      if (move) client.destroy();
      else client.end(answer);
      acknowledge(token);
    }
    if (last) measurement.report();
  });
  process.on('disconnect', () => process.exit(0));
}

function broker() {
  const measurement = new Measurement('broker');
  const cpu = process.env.BACKEND_CPU;
  const pinned = { execPath: 'taskset', execArgv: ['-c', cpu, process.execPath] };
  // Buffers go as they are; the default would make JSON of them.
  const child = child_process.fork(__filename, ['backend'],
    { serialization: 'advanced', ...(cpu === undefined ? {} : pinned) });
  const inFlight = new Map(), ends = [];
  let serial = 0;
  const offer = (client, preread) => {
    const token = Buffer.alloc(16);
    token.writeUInt32LE(++serial);
    inFlight.set(serial, client);
    child.send({ token, preread }, client, { keepOpen: move });
  };
  child.on('message', ({ token }) => {
    const offered = Buffer.from(token).readUInt32LE();
    const client = inFlight.get(offered);
    inFlight.delete(offered);
    if (measurement.step()) {
      measurement.report();
      ends.forEach((end) => end.resetAndDestroy()); // leaves none behind in TIME_WAIT
      child.disconnect();
    } else if (move && serial < warm + count) {
      offer(client, preread);
    }
  });
  child.on('exit', (status) => process.exit(status));

  const server = net.createServer((client) => {
    client.on('error', () => {}); // its other end may be reset
    if (move) {
      client.pause();
      return;
    }
    client.once('data', (preread) => {
      client.pause();
      offer(client, preread);
    });
  });
  server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 }, () => {
    if (!move) {
      console.log(`port ${server.address().port}`);
      return;
    }
    const connections = Math.min(mostInFlight, warm + count, 1024);
    const accepted = [];
    server.on('connection', (client) => {
      accepted.push(client);
      if (accepted.length < connections) return;
      for (let i = 0; i < Math.min(mostInFlight, warm + count); i++)
        offer(accepted[i % connections], preread);
    });
    for (let i = 0; i < connections; i++)
      ends.push(net.connect(server.address().port, '127.0.0.1').on('error', () => {}));
  });
}

if (process.argv[2] === 'backend') backend();
else broker();
