// Kills this process with SIGKILL at a named place, for crash tests: DTS_FAILPOINT=name or name:n for the n-th time.
import { failpoints, type Failpoint } from '../model/failpoints.ts';
import { MigrationError } from '../model/errors.ts';

/** Parses the setting; undefined or empty means that nothing is armed. Throws `invalid_request` for an unknown name. */
export function makeFailpoint(setting: string | undefined): (name: Failpoint) => void {
  if (setting === undefined || setting === '') return () => undefined;
  const [name, count = '1'] = setting.split(':');
  if (!(failpoints as readonly string[]).includes(name ?? '') || !/^[1-9]\d*$/.test(count)) {
    throw new MigrationError(
      'invalid_request',
      `DTS_FAILPOINT: unknown failpoint ${JSON.stringify(setting)}`,
      {
        hint: `known: ${failpoints.join(', ')}`,
      },
    );
  }
  let left = Number(count);
  return (reached) => {
    if (reached === name && --left === 0) process.kill(process.pid, 'SIGKILL');
  };
}
