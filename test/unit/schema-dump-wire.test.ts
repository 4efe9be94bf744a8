// The connection lent to pg_dump: whatever the network cuts into pieces, an answer ends where ReadyForQuery ends.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { AnswerScanner, LentConnection } from '../../src/schema/dump-wire.ts';

function message(type: string, body: string | Buffer): Buffer {
  const content = Buffer.from(body);
  const head = Buffer.alloc(5);
  head.write(type, 0);
  head.writeInt32BE(content.length + 4, 1);
  return Buffer.concat([head, content]);
}

const startup = (code: number, parameters = ''): Buffer => {
  const packet = Buffer.alloc(8);
  packet.writeInt32BE(8 + parameters.length, 0);
  packet.writeInt32BE(code, 4);
  return Buffer.concat([packet, Buffer.from(parameters)]);
};

test('an answer ends with ReadyForQuery, however it is cut, and its first error is kept', () => {
  const answer = Buffer.concat([
    message('T', 'Z'.repeat(50)),
    message('D', Buffer.alloc(0)),
    message('E', 'SERROR\0C55P03\0Mkann nicht\0\0'),
    message('E', 'SERROR\0C25P02\0Mlater\0\0'),
    message('Z', 'E'),
  ]);
  fc.assert(
    fc.property(fc.array(fc.nat(answer.length), { maxLength: 12 }), (cuts) => {
      const scanner = new AnswerScanner();
      const at = [0, ...cuts.sort((a, b) => a - b), answer.length];
      const ends = at.slice(1).map((to, n) => scanner.endsAnswer(answer.subarray(at[n], to)));
      const bytesSeen = at.slice(1);
      expect(ends.findIndex(Boolean)).toBe(
        bytesSeen.findIndex((to, n) => to === answer.length && at[n] !== to),
      );
      expect(scanner.error).toMatchObject({ C: '55P03', M: 'kann nicht' });
    }),
  );
});

test('libpq gets its startup answered and only whole queries reach the server', () => {
  const connection = new LentConnection({ server_version: '16.4' });
  const nothing = { toLibpq: null, toServer: null };
  expect(connection.write(startup(80877103))).toEqual({ toLibpq: Buffer.from('N'), toServer: null });
  expect(connection.write(startup(196608, 'user\0me\0\0').subarray(0, 5))).toEqual(nothing);
  const ready = connection.write(startup(196608, 'user\0me\0\0').subarray(5));
  expect(ready.toServer).toBeNull();
  expect(ready.toLibpq?.toString('latin1')).toContain('server_version\x0016.4\0');
  const query = message('Q', 'select 1\0');
  expect(connection.write(query.subarray(0, 7))).toEqual(nothing);
  expect(connection.write(query.subarray(7))).toEqual({ toLibpq: null, toServer: query });
  expect(connection.write(message('P', 'parse\0'))).toEqual(nothing);
  expect(connection.write(message('S', ''))).toEqual({
    toLibpq: null,
    toServer: Buffer.concat([message('P', 'parse\0'), message('S', '')]),
  });
  expect(connection.write(message('X', ''))).toEqual(nothing);
});

test('internal column options are filtered where pg_dump reads column options', () => {
  const connection = new LentConnection({});
  connection.write(startup(196608));
  const query = `select array_to_string(a.attoptions, ', ') AS ö from pg_attribute a\0`;
  const sent = connection.write(message('Q', query)).toServer ?? Buffer.alloc(5);
  expect(sent.readInt32BE(1)).toBe(sent.length - 1);
  expect(sent.toString('utf8', 5, sent.length - 1)).toBe(
    `select array_to_string(array(select o from unnest(a.attoptions) o where o not like 'pg\\_attver=%'), ', ') AS ö from pg_attribute a`,
  );
});
