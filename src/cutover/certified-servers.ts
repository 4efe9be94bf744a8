// Called by settle: which two databases the certificate is about, so that `dts verify` can tell them from others.
import type { Certificate } from '../model/certificate.ts';
import type { Endpoint } from '../model/endpoint.ts';
import { readIdentity } from '../postgres/database-identity.ts';
import { findSlot } from '../postgres/slot-record.ts';
import type { TaskScope } from '../postgres/task-scope.ts';

/** Errors: those of the connection to the target. */
export async function certifiedServers(scope: TaskScope): Promise<NonNullable<Certificate['servers']>> {
  const { sourceDb, targetDb } = scope.spec;
  return {
    // The source may be gone by now; no pooler leads to its walsender, so the name is the database's own.
    source: {
      ...addressOf(sourceDb),
      dbname: sourceDb.dbname,
      systemIdentifier: findSlot(scope)?.system?.id ?? null,
    },
    target: { ...addressOf(targetDb), ...(await readIdentity(scope.target)) },
  };
}

function addressOf({ host, port }: Endpoint): Pick<Endpoint, 'host' | 'port'> {
  return { host, port };
}
