// Compiled, not run: the types let through what the binding does, and nothing else.
import http = require('http');
import handoff = require('..');

const server = http.createServer();
const backend: handoff.Backend = handoff.serve(server, '/run/app/handoff.sock', { mode: 0o660, groups: [33] });
backend.on('error', (error) => console.error(error.code, error.errno));

handoff.listen({ fd: 3 }, { maxHeldBytes: Infinity }, (arrival) => {
  if (arrival.service === 'http') return arrival.serve(server);
  if (arrival.tls) return arrival.reject('CLIENT_UNSUPPORTED');
  const connection = arrival.adopt();
  connection?.end(`${arrival.client?.address} ${connection.remotePort}`);
  // @ts-expect-error: the broker may have taken it back
  connection.end();
  // @ts-expect-error: no reason
  arrival.reject('BECAUSE');
});
// @ts-expect-error: index.js exports no such class
console.log(handoff.Arrival);
const wait = (arrival: handoff.Arrival): Buffer => arrival.preread;
handoff.listen('/run/app/handoff.sock').on('arrival', wait);
// @ts-expect-error: no option
handoff.listen('/run/app/handoff.sock', { maxchannels: 1 });

export const closed: Promise<void> = backend.unref().ref().close();
