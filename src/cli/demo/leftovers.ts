// What the demo looks for when everything is over: objects of DTS on either server that should be gone.
import pg from 'pg';

/** In words; empty when nothing is left in the database. */
export async function findLeftovers(url: string, side: string): Promise<string[]> {
  const client = new pg.Client({ connectionString: url, ssl: false, application_name: 'demo/leftovers' });
  await client.connect();
  try {
    const { rows } = await client.query<{ what: string }>(`
      select 'replication slot ' || slot_name as what from pg_replication_slots where database = current_database()
      union all select 'publication ' || pubname from pg_publication
      union all select 'trigger ' || tgname || ' on ' || tgrelid::regclass from pg_trigger where tgname like 'dts\\_%'
      union all select 'schema dts' from pg_namespace where nspname = 'dts'
      union all select 'connection ' || application_name from pg_stat_activity
        where datname = current_database() and application_name like 'dts/%'`);
    return rows.map(({ what }) => `${side}: ${what}`);
  } finally {
    await client.end();
  }
}
