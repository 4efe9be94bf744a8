// How a check asks its server: one statement on the side's preflight session, answers as plain rows. The session
// pipelines, so checks that do not need each other's answers share a round trip.
import type { QueryResultRow } from 'pg';
import type { Session } from '../postgres/connections.ts';
import { fromPostgres } from '../postgres/errors.ts';
import { MigrationError } from '../model/errors.ts';
import type { Role } from '../model/endpoint.ts';

export type Ask = <R extends QueryResultRow>(sql: string, params?: readonly unknown[]) => Promise<R[]>;

export function askOn(session: Session, role: Role): Ask {
  return async <R extends QueryResultRow>(sql: string, params: readonly unknown[] = []): Promise<R[]> => {
    try {
      const { rows } = await session.client.query<R>(sql, [...params]);
      return rows;
    } catch (error) {
      throw fromPostgres(error, { role });
    }
  };
}

/** For queries without FROM or over a set that cannot be empty. */
export function onlyRow<R>(rows: readonly R[]): R {
  const row = rows[0];
  if (row === undefined) throw new MigrationError('internal', 'a query that always has a row had none');
  return row;
}
