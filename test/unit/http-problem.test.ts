import { describe, expect, test } from 'vitest';
import { Refusal, toProblem } from '../../src/http/problem.ts';
import { errorCodes, MigrationError, type ErrorCode } from '../../src/model/errors.ts';
import { invalidRequest } from '../../src/model/request-faults.ts';

describe('problem documents', () => {
  test.each(Object.keys(errorCodes) as ErrorCode[])(
    '%s has a status of 4xx or 5xx and its meaning as title',
    (code) => {
      const problem = toProblem(new MigrationError(code, 'm'), '/p');
      expect(problem.status).toBeGreaterThanOrEqual(400);
      expect(problem).toMatchObject({
        code,
        title: errorCodes[code][1],
        type: `urn:dts:error:${code}`,
        instance: '/p',
      });
    },
  );

  test('fields are named as the client spells them, in the list and in the text', () => {
    const problem = toProblem(invalidRequest([{ field: 'sourceDb.port', message: 'is wrong' }]), '/p');
    expect(problem).toMatchObject({
      status: 400,
      detail: 'source_db.port: is wrong',
      fields: [{ field: 'source_db.port', message: 'is wrong' }],
    });
  });

  test('a refused command tells the state and the commands, in lower case', () => {
    const error = new MigrationError('event_not_accepted', 'no', {
      details: { state: 'migratingData', allowed: ['PAUSE', 'CANCEL'] },
    });
    expect(toProblem(error, '/p')).toMatchObject({
      status: 409,
      state: 'migratingData',
      allowed: ['pause', 'cancel'],
    });
  });

  test('details never replace the standard members', () => {
    const error = new MigrationError('task_exists', 'there', {
      hint: 'other id',
      details: { status: 1, type: 'x' },
    });
    expect(toProblem(error, '/p')).toMatchObject({
      status: 409,
      type: 'urn:dts:error:task_exists',
      hint: 'other id',
    });
  });

  test.each([
    ['an unforeseen error', new TypeError('secret pw in /srv/dts/db.ts')],
    ['a bug', new MigrationError('internal', 'secret pw', { hint: 'secret', details: { pw: 'secret' } })],
    ['a thrown string', 'secret'],
  ])('%s says nothing about the inside', (_, error) => {
    const problem = toProblem(error, '/p');
    expect(problem).toMatchObject({ status: 500, code: 'internal' });
    expect(JSON.stringify(problem)).not.toMatch(/secret|srv/);
  });

  test('a refusal keeps its status beside the code', () => {
    expect(toProblem(new Refusal(413, 'invalid_request', 'too large'), '/p')).toMatchObject({
      status: 413,
      code: 'invalid_request',
      detail: 'too large',
    });
  });
});
