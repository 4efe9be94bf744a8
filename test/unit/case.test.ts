import { describe, expect, test } from 'vitest';
import { snakePath, toCamel, toSnake } from '../../src/model/case.ts';

describe('answers', () => {
  test('names become snake_case at every depth, values stay', () => {
    expect(
      toSnake({
        sourceDb: { host: 'dbHost' },
        tables: ['userAccounts'],
        detail: { bytesPerSecond: 1 },
        x: null,
      }),
    ).toEqual({
      source_db: { host: 'dbHost' },
      tables: ['userAccounts'],
      detail: { bytes_per_second: 1 },
      x: null,
    });
  });

  test('what lies inside the details of an error keeps its keys', () => {
    expect(toSnake({ error: { details: { slotName: 's', row: { orderId: 1, Total: 2 } } } })).toEqual({
      error: { details: { slot_name: 's', row: { orderId: 1, Total: 2 } } },
    });
  });

  test('keys that are no names of ours are left alone', () => {
    expect(toSnake({ 'public.userTable': 1, A: 2, _xY: 3 })).toEqual({ 'public.userTable': 1, A: 2, _xY: 3 });
  });

  test('the path of a field is spelled as the client wrote it', () => {
    expect(snakePath('sourceDb.port')).toBe('source_db.port');
    expect(snakePath('tables.0')).toBe('tables.0');
  });
});

describe('requests', () => {
  test('names become camelCase, values stay', () => {
    expect(toCamel({ source_db: { password_env: 'A_B' }, tables: ['user_accounts'] })).toEqual({
      value: { sourceDb: { passwordEnv: 'A_B' }, tables: ['user_accounts'] },
      unknownFields: [],
    });
  });

  test('a name with an uppercase letter is unknown, wherever it stands', () => {
    const { unknownFields } = toCamel({ sourceDb: {}, options: { copyJobs: 1 }, list: [{ Id: 1 }] });
    expect(unknownFields).toEqual(['sourceDb', 'options.copyJobs', 'list.0.Id']);
  });

  test.each(['_id', 'id_', 'a__b', 'a-b', '', 'é', 'a.b'])('the name %j is unknown', (name) => {
    expect(toCamel({ [name]: 1 }).unknownFields).toEqual([name]);
  });

  test('__proto__ is an unknown field, not a prototype', () => {
    const { value, unknownFields } = toCamel(JSON.parse('{"__proto__": {"admin": true}}'));
    expect(unknownFields).toEqual(['__proto__']);
    expect((value as { admin?: boolean }).admin).toBeUndefined();
  });

  test('a body nested beyond reason is refused without exhausting the stack', () => {
    const body: unknown = JSON.parse(`${'['.repeat(100_000)}${']'.repeat(100_000)}`);
    expect(toCamel(body).unknownFields).toHaveLength(1);
  });
});
