// Which database a connection leads to, whatever address was given. settle notes it in the certificate, `dts verify` asks again.
import { fromPostgres } from './errors.ts';
import type { Side } from './connections.ts';

export interface DatabaseIdentity {
  readonly dbname: string;
  /**
   * Of pg_control: made by initdb, shared by physical copies (standbys, promoted or not). Decimal text; null: the server does
   * not tell, as managed ones may.
   */
  readonly systemIdentifier: string | null;
}

/** Errors: those of the connection; that the server refuses to tell its identifier is none. */
export async function readIdentity(side: Side): Promise<DatabaseIdentity> {
  // two statements: the right to call the function is checked before anything of a statement is run
  const { rows } = await side.query<{ dbname: string }>('select current_database()::text as dbname');
  return {
    dbname: rows[0]?.dbname ?? side.endpoint.dbname,
    systemIdentifier: await readSystemIdentifier(side),
  };
}

async function readSystemIdentifier(side: Side): Promise<string | null> {
  try {
    const { rows } = await side.query<{ id: string }>(
      'select system_identifier::text as id from pg_control_system()',
    );
    return rows[0]?.id ?? null;
  } catch (error) {
    const known = fromPostgres(error);
    if (known.code === 'connection_failed' || known.details?.['sqlstate'] === undefined) throw known;
    return null;
  }
}
