// What every session of ours sets, whatever the server, the database and the role have as their defaults: connections.ts
// for SQL, wal-stream.ts for the walsender, whose output functions print the values that are streamed.

/**
 * Settings that change what a value means, how it is printed, what a statement does or how long it may take, of 13 to 18
 * and of what this role may set (lo_compat_privileges and session_replication_role are for superusers). Not among them:
 * what only chooses a plan, and where new objects are put, which is the target's own business.
 */
const settings: readonly (readonly [name: string, value: string])[] = [
  // values as text
  ['client_encoding', 'UTF8'],
  ['datestyle', 'ISO, YMD'],
  ['intervalstyle', 'postgres'],
  ['timezone', 'UTC'],
  ['extra_float_digits', '3'],
  ['bytea_output', 'hex'],
  ['lc_monetary', 'C'],
  ['xmloption', 'content'],
  ['array_nulls', 'on'], // off reads {x,NULL} as two strings
  ['quote_all_identifiers', 'off'], // also in what regclass and regtype print
  // statements as text
  ['search_path', ''],
  ['standard_conforming_strings', 'on'],
  ['backslash_quote', 'safe_encoding'],
  ['transform_null_equals', 'off'],
  // what statements do
  ['check_function_bodies', 'off'], // as pg_dump asks for: bodies may name what comes later or under another name
  ['row_security', 'off'], // an error rather than a part of the rows
  ['synchronize_seqscans', 'off'],
  ['gin_fuzzy_search_limit', '0'], // otherwise an index may return a sample of the rows
  ['exit_on_error', 'off'],
  ['default_transaction_isolation', 'read committed'],
  ['default_transaction_read_only', 'off'],
  ['default_transaction_deferrable', 'off'],
  // how long they may take
  ['statement_timeout', '0'],
  ['lock_timeout', '0'],
  ['idle_in_transaction_session_timeout', '0'],
  ['idle_session_timeout', '0'], // from 14 on
  ['transaction_timeout', '0'], // from 17 on; a walsender's decoding is a transaction, too
];

/** The statement that sets them. Unknown names are left out, so that it serves every version. */
export const sessionSettings = `
  select set_config(name, value, false)
  from (values ${settings.map(([name, value]) => `('${name}', '${value}')`).join(', ')},
    -- What we have seen committed (a sequence, the fence, a marker) must outlive a crash: later steps build on it.
    ('synchronous_commit', case current_setting('synchronous_commit') when 'off' then 'local' end)) as s(name, value)
  where value is not null and current_setting(name, true) is not null`;

/**
 * Of a session that decodes. A transaction that does not fit into logical_decoding_work_mem is written to disk and read again,
 * change by change, which takes longer than decoding it: as much as the server has shared_buffers, up to 512 MB.
 */
export const decodingMemory = `
  select set_config('logical_decoding_work_mem', greatest(d.setting::int8,
    least(b.setting::int8 * current_setting('block_size')::int8 / 1024, 524288)) || 'kB', false)
  from pg_settings d, pg_settings b where d.name = 'logical_decoding_work_mem' and b.name = 'shared_buffers'`;
