// The session that applies: what a caller hears when its server is gone.
import { once } from 'node:events';
import { Socket } from 'node:net';
import { expect, it } from 'vitest';
import type { Session } from '../../src/postgres/connections.ts';
import { Pipeline, type AnswerReader } from '../../src/postgres/pipeline.ts';

const reader: AnswerReader<string> = {
  onError: () => expect.fail('nothing answers'),
  onRows: () => expect.fail('nothing answers'),
  onData: () => undefined,
};

it.each(['before', 'after'] as const)(
  'a connection that was lost %s it was taken over is told',
  async (when) => {
    const stream = new Socket();
    const client = { connection: { stream } };
    if (when === 'before') await once(stream.destroy(), 'close');
    const pipe = new Pipeline<string>(
      { client, pid: 1, close: () => Promise.resolve() } as unknown as Session,
      reader,
    );
    pipe.execute('select 1', [], 1, 'a statement');
    const idle = pipe.idle();
    if (when === 'after') stream.destroy();
    await expect(idle).rejects.toMatchObject({ code: 'connection_failed' });
  },
);
