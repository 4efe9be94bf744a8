// What the benches say that a server has cost: its children end while it is being looked at.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, onTestFinished, test } from 'vitest';
import { cpuSeconds } from '../bench/support/processes.ts';

test('the CPU of children that have ended is counted once, whenever it is asked for', async () => {
  // the idle ones lie between parent and child in /proc: it takes a while from the one to the other
  const script = `
    for n in $(seq 100); do sleep 60 & done
    for n in $(seq 25); do sh -c 'i=0; while [ $i -lt 15000 ]; do i=$((i+1)); done'; done
    echo done; read _`;
  const parent = spawn('sh', ['-c', script], { detached: true, stdio: ['pipe', 'pipe', 'inherit'] });
  const { pid } = parent;
  if (pid === undefined) throw new Error('sh did not start');
  onTestFinished(() => void process.kill(-pid, 'SIGKILL'));
  let done = false;
  void once(parent.stdout, 'data').then(() => (done = true));
  const seen = [cpuSeconds(pid)];
  while (!done) {
    seen.push(cpuSeconds(pid));
    await sleep(1);
  }
  seen.push(cpuSeconds(pid));
  expect(seen).toEqual([...seen].sort((a, b) => a - b));
  expect(seen.at(-1)).toBeGreaterThan(0.1);
}, 30_000);
